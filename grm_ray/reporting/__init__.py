"""HTML and Markdown pages of finished runs; reads run folders, starts nothing."""
