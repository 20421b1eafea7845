"""Add the options of the commands that export. Standard library only."""

import argparse

from vqa_utils.running.command_line._options import add_named_settings, add_settings
from vqa_utils.running.command_line._types import path


def add_prepare_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of prepare."""
    parser.add_argument(
        "folder",
        type=path,
        metavar="DIR",
        help="a new folder for the base, and with --data for the pictures as they are shown",
    )
    add_settings(parser)


def add_notebook_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of export-notebook."""
    parser.add_argument("file", type=path, metavar="FILE.ipynb", help="the notebook")
    add_settings(parser)


def add_kaggle_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of export-kaggle."""
    parser.add_argument("folder", type=path, metavar="DIR", help="a new folder, or an export's")
    add_named_settings(parser)
    kaggle = parser.add_argument_group("on Kaggle")
    kaggle.add_argument(
        "--user",
        default="",
        metavar="NAME",
        help="your name there (default: as the kaggle package knows it)",
    )
    kaggle.add_argument(
        "--name",
        default="two-gpu-vqa",
        metavar="SLUG",
        help="of the notebook, and with -code of the dataset (default: two-gpu-vqa)",
    )
    kaggle.add_argument(
        "--competition",
        default="",
        metavar="NAME",
        help="the competition to attach, as in its address",
    )
    kaggle.add_argument(
        "--kaggle-model",
        default="",
        metavar="REF",
        help="the model to attach, owner/model/framework/variation/version "
        "(default: it is downloaded)",
    )
    kaggle.add_argument(
        "--dataset",
        dest="datasets",
        action="append",
        default=[],
        metavar="OWNER/NAME",
        help="one more dataset to attach; may be given several times",
    )
    kaggle.add_argument(
        "--offline",
        action="store_true",
        help="switch the internet off there, and take along the packages, without torch (220 MB)",
    )
    kaggle.add_argument(
        "--python",
        default="3.12",
        metavar="VERSION",
        help="of the image, for --offline (default: 3.12)",
    )
    kaggle.add_argument(
        "--go-on",
        action="store_true",
        help="attach the notebook's own output: it goes on with the run in it",
    )
