"""Label cleaning: `votes` of models that did not see a pair, `run` what becomes of the rows."""
