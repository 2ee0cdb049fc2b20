"""How processes find one another, agree on what they do, and leave together."""
