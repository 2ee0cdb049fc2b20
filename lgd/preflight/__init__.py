"""A look at the machines of a job before it trains: who is there, how fast, with which data."""
