"""What export shows on the terminal."""

from rich.console import Console

from dgnet_core.methods import described
from dgnet_core.ranking.described import program_of
from dgnet_platform.cli.terminal import DONE
from dgnet_platform.errors import UserError, printable
from dgnet_platform.evaluation.config import ExportConfig
from dgnet_platform.runs.exported import check_onnx, metadata, write_onnx, write_program
from dgnet_platform.runs.loading import open_describing
from dgnet_platform.storage.files import staging
from dgnet_platform.tracking.models import save_served


def export_and_show(config: ExportConfig, console: Console) -> int:
    """Write all files or none, and show what they are; returns the exit status."""
    out = config.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not empty: name a new folder")
    if "onnx" in config.formats:
        check_onnx()
    trained = open_describing(config.checkpoint)
    network, known = described(trained.state, trained.config), metadata(trained, config.checkpoint)
    with staging(out) as folder:
        for precision in config.precision:
            half = precision == "float16"
            program, about = program_of(network, half=half), known | {"precision": precision}
            name = "descriptors_float16" if half else "descriptors"
            if "onnx" in config.formats:
                write_onnx(program, folder / f"{name}.onnx", about)
            if "pt2" in config.formats:
                write_program(program, folder / f"{name}.pt2", about)
            if "mlflow" in config.formats:
                save_served(program, about, folder / f"{name}_mlflow")
    height, width = network.height, network.width
    lines = [
        f"{trained.source}: it takes pictures (N, 3, {height}, {width}), uint8, RGB, and gives descriptors.",
        *(f"{path}" for path in sorted(out.iterdir())),
    ]
    console.print("\n".join(map(printable, lines)), style="green")
    return DONE
