"""Execute the commands that export, by their arguments; each returns the words for its end."""

from argparse import Namespace
from pathlib import Path

from vqa_utils.artifacts.paths import shown
from vqa_utils.config import Config
from vqa_utils.exporting.kaggle import KaggleExport, export_kaggle
from vqa_utils.exporting.one_notebook import export_notebook
from vqa_utils.running.command_line.arguments import changes_in


def _prepare(args: Namespace, config: Config) -> str:
    from vqa_utils.model.preparing import prepare_base  # it imports torch

    folder = Path(args.folder).expanduser()
    pictures = prepare_base(config, folder)
    with_pictures = f", with {pictures:,} pictures as they are shown" if pictures else ""
    return f"--model {shown(folder.resolve())} takes it{with_pictures}"


def _export_kaggle(args: Namespace, config: Config) -> str:
    export = KaggleExport(
        user=args.user,
        name=args.name,
        competition=args.competition,
        model=args.kaggle_model,
        datasets=tuple(args.datasets),
        arguments=tuple(changes_in(args)),
        python=args.python if args.offline else "",
        goes_on=args.go_on,
    )
    folder = Path(args.folder).expanduser()
    export_kaggle(folder, config, export)
    return f"{shown(folder.resolve() / 'README.md')} has the commands that come next"


def _export_notebook(args: Namespace, config: Config) -> str:
    file = Path(args.file).expanduser()
    export_notebook(file, config)
    return f"wrote {shown(file.resolve())}"


EXPORTS = {
    "prepare": _prepare,
    "export-kaggle": _export_kaggle,
    "export-notebook": _export_notebook,
}
