"""Studies of training methods: `grid` lists the cells, `run` trains and judges each."""
