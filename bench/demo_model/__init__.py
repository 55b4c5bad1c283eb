"""How the demo model, its dataset and its judge were made. `python dev.py bench pretrain` makes them again."""
