"""Sample pictures: the prompts they are drawn from, and grids of them."""
