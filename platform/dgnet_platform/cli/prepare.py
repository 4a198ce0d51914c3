"""What prepare_data shows on the terminal."""

from functools import partial

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dgnet_platform.cli.terminal import DONE, FAILED, progress_bars
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.poses import SHEET
from dgnet_platform.data.prepare import LISTED_PROBLEMS, Prepared, prepare
from dgnet_platform.data.readers import READERS
from dgnet_platform.data.records import SPLITS
from dgnet_platform.data.source import PICTURE_ENDINGS
from dgnet_platform.errors import printable


def prepare_store(config: PrepareConfig, console: Console) -> int:
    """Pack a data set, show its progress and its counts; returns the exit status: 1 when files are bad."""
    with progress_bars(console) as show:
        prepared = prepare(config, partial(show, "pictures"))
    console.print(report(prepared))
    return FAILED if prepared.outcome == "refused" else DONE


def report(prepared: Prepared) -> RenderableType:
    """Counts beside the published ones, where they differ, and what was wrong, for a terminal."""
    reader, info = READERS[prepared.config.dataset], prepared.info
    table = Table(title=f"{reader.title}, fingerprint {info.fingerprint[:12]}", title_justify="left")
    for column in ("split", "people", "published", "pictures", "published", "cameras"):
        table.add_column(column, justify="left" if column == "split" else "right")
    differences = []
    for split in SPLITS:
        found, published = info.splits.get(split), reader.published.get(split)
        if found is None:
            if published is not None and split != "multi_query":
                differences.append(f"{split} is missing")
            continue
        cells = [f"{found.people:,}", "-", f"{found.pictures:,}", "-", str(found.cameras)]
        if published is not None:
            cells[1], cells[3] = f"{published.people:,}", f"{published.pictures:,}"
            for what in ("people", "pictures"):
                if (more := getattr(found, what) - getattr(published, what)) != 0:
                    differences.append(f"{split} has {abs(more):,} {what} {'more' if more > 0 else 'fewer'}")
        table.add_row(split, *cells)
    lines: list[RenderableType] = [table]
    if differences:
        lines.append(Text(f"Differs from the published set: {'; '.join(differences)}.", style="yellow"))
    elif reader.published:
        lines.append(Text("All counts are the published ones."))
    lines.append(Text(f"{prepared.ignored:,} other files were ignored."))
    if prepared.unused:
        folders = ", ".join(f"{count:,} in {folder}" for folder, count in sorted(prepared.unused.items()))
        lines.append(Text(printable(f"Pictures of no split are among them: {folders}."), style="yellow"))
    if prepared.unread:
        kinds = ", ".join(f"{count:,} {ending}" for ending, count in sorted(prepared.unread.items()))
        read = ", ".join(PICTURE_ENDINGS)
        lines.append(Text(f"Pictures of kinds that are not read are among them: {kinds}. Read are {read}.", "yellow"))
    for problem in prepared.problems[:LISTED_PROBLEMS]:
        lines.append(Text(printable(f"{problem.file}: {problem.reason}"), style="red"))
    if (more := len(prepared.problems) - LISTED_PROBLEMS) > 0:
        lines.append(Text(f"... and {more:,} more", style="red"))
    return Group(*lines, _verdict(prepared), *_poses(prepared))


def _verdict(prepared: Prepared) -> Text:
    bad = len(prepared.problems)
    if prepared.outcome == "refused":
        text = f"Nothing was written: {bad:,} files are bad. Repair them, or pass --skip-bad."
        return Text(text, style="bold red")
    done = "Packed into" if prepared.outcome == "packed" else "Already prepared:"
    skipped = f", without {bad:,} bad files" if bad else ""
    return Text(f"{done} {printable(str(prepared.config.out))}{skipped}.", style="green")


def _poses(prepared: Prepared) -> list[Text]:
    """How many joints are missing, and what looks wrong with the others."""
    poses = prepared.poses
    if poses is None:
        return []
    lines = [Text(f"Key points from {printable(poses.source)}: {poses.missing:.1%} of the joints are missing.")]
    notes = {
        f"{poses.absent:,} of {poses.pictures:,} pictures have none": poses.absent,
        f"{poses.others:,} are for pictures that the store does not have": poses.others,
        f"{poses.empty:,} pictures have no joint at all: {', '.join(poses.empty_names)}": poses.empty,
    }
    if prepared.config.keypoints is not None:  # those of drawn people are known: what looks wrong there is not
        notes |= {
            f"{what} in {count:,} pictures: {', '.join(poses.implausible_names[what])}": count
            for what, count in poses.implausible.items()
        }
    lines += [Text(printable(f"  {note}"), style="yellow") for note, count in notes.items() if count]
    return [*lines, Text(printable(f"See ten of them in {prepared.config.out}/{SHEET}."))]
