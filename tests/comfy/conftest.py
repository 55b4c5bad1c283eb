from wired import *  # noqa: F403
