"""The tables of the paper: what each trains, measures and draws, the records of its runs, and the page of results."""
