"""Add the options for a run on several machines. Standard library only."""

import argparse

LOCAL, RAY = EXECUTORS = ("local", "ray")


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add where folds are trained and scored."""
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default=LOCAL,
        help="where folds are trained and scored: on this machine (default), or on the nodes of "
        "a Ray cluster (see vqa_utils/running/cluster/README.md)",
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="head of the Ray cluster (default: that of this machine, or else this machine alone)",
    )
