"""What is evaluated or generated, and how: read before anything heavy is imported."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate trained networks on one store or several."""

    store: tuple[str, ...]
    """Folder or URI of a store with query and gallery; several show how the networks transfer."""
    out: Path
    """Folder for tables and pictures; earlier results there are replaced when the new ones are complete."""
    checkpoint: Path | None = None
    """A checkpoint's directory, a folder with the authors' gen_*.pt, dis_*.pt and id_*.pt, or an ONNX file of
    jobs/export.py."""
    teacher: Path | None = None
    """A teacher (a checkpoint, or the authors' net_last.pth), for the baseline's row; may stand alone."""
    rendered_teacher: Path | None = None
    """PN-GAN's re-id: model B, a teacher that was trained on what --checkpoint made with --poses canonical; --teacher
    is then model A, trained on the original pictures."""
    export_release: Path | None = None
    """Also write the checkpoint's networks into this new folder as the authors' files: gen_*.pt, dis_*.pt, id_*.pt."""
    beta: float | None = None
    """Weight of f_fine beside f_prim; None: the checkpoint's own setting (paper: 0.5)."""
    sweep: bool = False
    """Also try weights of f_fine from 0 to 1, from the same features."""
    rerank: bool = False
    """Also re-rank by k-reciprocal neighbours (Zhong et al., 2017)."""
    queries_shown: int = 8
    """Queries in the picture of ranked lists, from the worst to the best; 0 for none."""
    swap_grid: bool = True
    """Show swaps among queries of different people (the paper's Figure 6)."""
    interpolations: bool = True
    """Show interpolations between queries, of each code by itself (Figures 5 and 9)."""
    failures: bool = True
    """Show the swaps that lose the appearance's identity beside those that keep it best (Figure 7), as --teacher ranks
    it, or else the checkpoint's own descriptors."""
    swap_pairs: int = 128
    """Pairs for swap fidelity on drawn people, of seen and of unseen identities each; 0 for none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto takes a GPU if there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is faster on a GPU."""
    batch_size: int = 64
    """Pictures that go through a network at once."""
    threads: int = os.cpu_count() or 1
    """Threads that decode, of each worker if there are some; results do not depend on it."""
    distributed: bool = False
    """Extract on workers of a Ray cluster, for galleries beyond one machine; a run that was killed resumes."""
    workers: int = 1
    """With --distributed: how many, with a CPU each, and a GPU by --device (auto: if the cluster has some)."""

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.teacher is None:
            raise ValueError("--checkpoint or --teacher is needed: what should be evaluated?")
        if self.rendered_teacher is not None and (self.checkpoint is None or self.teacher is None):
            raise ValueError("--rendered-teacher is model B: name PN-GAN's --checkpoint and model A, --teacher, too")
        if self.export_release is not None and self.checkpoint is None:
            raise ValueError("--export-release writes the networks of a --checkpoint: name it too")
        if self.checkpoint is not None and self.checkpoint.suffix == ".pt2":
            raise ValueError(f"--checkpoint {self.checkpoint}: PyTorch runs code as it reads it: name the ONNX file")
        if self.exported:
            names = "rendered_teacher", "export_release", "beta", "sweep", "distributed"
            unfit = [name for name in names if getattr(self, name) not in (None, False)]
            unfit += ["precision"] if self.precision != "float32" else []
            if unfit:
                option = unfit[0].replace("_", "-")
                raise ValueError(f"--{option} cannot be had of an exported file: leave it out, or name the checkpoint")
        if not self.store:
            raise ValueError("--store is needed: evaluate on what?")
        if self.beta is not None and not (0 <= self.beta < math.inf):
            raise ValueError(f"--beta {self.beta}: must be finite and at least 0")
        for name, least in (("queries_shown", 0), ("swap_pairs", 0), ("batch_size", 1), ("threads", 1), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {least} or more")
        if self.workers > 1 and not self.distributed:
            raise ValueError(f"--workers {self.workers} are for --distributed: add it")

    @property
    def exported(self) -> bool:
        """Whether an exported file is evaluated."""
        return self.checkpoint is not None and self.checkpoint.suffix == ".onnx"

    @property
    def descriptors(self) -> Path:
        """Folder of a distributed run's descriptors as long as it is not finished."""
        return self.out.parent / f".{self.out.name}.descriptors"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export the network that describes people."""

    checkpoint: Path
    """A checkpoint's directory (DG-Net's, a teacher's or FD-GAN's), a folder with the authors' id_*.pt, or their
    teacher (net_last.pth)."""
    out: Path
    """A new folder for the files."""
    formats: tuple[Literal["onnx", "pt2", "mlflow"], ...] = ("onnx", "pt2", "mlflow")
    """ONNX, a program of torch.export, and a folder that `mlflow models serve` serves, which runs that program."""
    precision: tuple[Literal["float32", "float16"], ...] = ("float32", "float16")
    """float16: the ResNet's weights and arithmetic; a file is half as large."""

    def __post_init__(self) -> None:
        for name in ("formats", "precision"):
            if not getattr(self, name):
                raise ValueError(f"--{name}: name one at least")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Make a set of generated pictures: the appearance of each picture in the structures of others."""

    checkpoint: Path
    """A checkpoint's directory, or a folder with the authors' gen_*.pt, dis_*.pt and id_*.pt."""
    store: str
    """Folder or URI of a store."""
    out: Path
    """Folder for the pictures; an unfinished one is completed."""
    per_image: int = 10
    """Structures in which each appearance is drawn; DG-Market has about 10. Canonical poses are always eight."""
    poses: Literal["others", "canonical"] = "others"
    """In which poses: of other pictures, or in the eight that stand for all of the training split, which PN-GAN's
    second model for re-id learns from."""
    split: str = "train"
    """Where appearances and structures come from."""
    seed: int = 0
    """Draws other structures."""
    batch_size: int = 32
    """Appearances that go through the networks at once, and make a part of the set."""
    quality: int = 95
    """Of the JPEGs, 1 to 100."""
    workers: int = 0
    """Workers on a Ray cluster, with a CPU each; 0: this process alone."""
    gpus: bool = False
    """Each worker has a GPU too; without workers a GPU is used if there is one."""
    threads: int = os.cpu_count() or 1
    """Threads of each worker that decode and encode; the set does not depend on it."""

    def __post_init__(self) -> None:
        for name, least in (("per_image", 1), ("seed", 0), ("batch_size", 1), ("workers", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {least} or more")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality}: must be 1 to 100")
        if self.gpus and not self.workers:
            raise ValueError("--gpus are for --workers: say how many")
        if self.poses == "canonical" and self.split != "train":
            raise ValueError(f"--poses canonical are those of the training split: leave out --split {self.split}")


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Measure how good generated people are: a checkpoint's, or any generator's from a folder of pictures."""

    store: str
    """Folder or URI of the store with the real pictures."""
    out: Path
    """Folder for tables and pictures; earlier results there are replaced when the new ones are complete."""
    checkpoint: Path | None = None
    """Generate the pictures first: a checkpoint's directory, or a folder of the authors' release."""
    generated: Path | None = None
    """Measure the pictures of this folder: one that jobs/generate.py made, or one with a manifest.csv with the columns
    path, appearance_id and structure_id; appearance and structure, the real pictures' file names, are optional."""
    teacher: Path | None = None
    """A teacher (a checkpoint or net_last.pth), for frechet_teacher, kid_teacher and identity kept; None: the one that
    the checkpoint's run was trained with."""
    inception: Path | None = None
    """The FID network's file, for fid and kid: torch-fidelity's or pytorch-fid's."""
    resnet: Path | None = None
    """torchvision's file of a ResNet-50, -101 or -152, for frechet_resnet50 and kid_resnet50, say."""
    mode: Literal["table2", "clean", "legacy_pytorch"] = "table2"
    """How the FID network's pictures are resized: as for the paper's Table 2, as clean-fid, or as pytorch-fid does."""
    split: str = "train"
    """Of the store: where the real pictures come from, and a checkpoint's appearances and structures."""
    floor: Literal["halves", "gallery"] = "halves"
    """Real against real: one half of the split against the other, or the split against the gallery, as in Table 2."""
    pictures: int = 12_936
    """Pictures of each side at most; 12,936 in Table 2."""
    people: int = 512
    """People that are judged without their background, in photographs by their key points; 0 for none."""
    diversity_pairs: int = 10
    """Pairs of each identity in a round of DSSIM; 0 for no diversity."""
    diversity_rounds: int = 5
    """Independent rounds of DSSIM."""
    seed: int = 0
    """Draws other pictures, pairs and subsets."""
    batch_size: int = 32
    """Pictures that go through a network at once."""
    workers: int = 0
    """Workers on a Ray cluster, with a CPU each; 0: this process alone."""
    gpus: bool = False
    """Each worker has a GPU too; without workers a GPU is used if there is one."""
    threads: int = os.cpu_count() or 1
    """Threads of each worker that decode."""
    tracking_uri: str = ""
    """MLflow that knows the run that trained the checkpoint, if it has moved: its figures and pictures go there. Of
    pictures of no run, such as --generated's, they go to a new run, if this or MLFLOW_TRACKING_URI names an MLflow."""

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.generated is None):
            raise ValueError("either --checkpoint or --generated is needed: whose pictures should be measured?")
        least = {"pictures": 1, "people": 0, "diversity_pairs": 0, "diversity_rounds": 1, "seed": 0, "batch_size": 1}
        for name, value in {**least, "workers": 0, "threads": 1}.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {value} or more")
        if self.gpus and not self.workers:
            raise ValueError("--gpus are for --workers: say how many")

    @property
    def parts(self) -> Path:
        """Folder of what is measured so far, as long as it is not finished."""
        return self.out.parent / f".{self.out.name}.measured"

    @property
    def made(self) -> Path:
        """Folder of the pictures that a checkpoint generates meanwhile."""
        return self.out.parent / f".{self.out.name}.generated"


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare generators that were trained on the same data."""

    out: Path
    """Folder for figure and tables; earlier results there are replaced when the new ones are complete."""
    store: str = ""
    """Folder or URI of the store that all were trained on; none: the people that --train draws."""
    checkpoint: tuple[Path, ...] = ()
    """A checkpoint's directory of each generator; runs that differ in their seed alone are averaged."""
    teacher: Path | None = None
    """A teacher that measures distances and identity; None: the one that a compared run was trained with."""
    inception: Path | None = None
    """The FID network's file, for fid and kid: torch-fidelity's or pytorch-fid's."""
    resnet: Path | None = None
    """torchvision's file of a ResNet-50, -101 or -152, for frechet_resnet50 and kid_resnet50, say."""
    split: str = "train"
    """Of the store: whom the generators draw for the table."""
    pictures: int = 12_936
    """Pictures of each side at most; 12,936 in Table 2."""
    people: int = 512
    """Drawn people that are compared with their true pictures; 0 for none."""
    diversity_pairs: int = 10
    """Pairs of each identity in a round of DSSIM; 0 for no diversity."""
    shown: int = 6
    """People in the figure, at most 6."""
    seed: int = 0
    """Draws other pictures, pairs and subsets."""
    batch_size: int = 32
    """Pictures that go through a network at once."""
    workers: int = 0
    """Workers on a Ray cluster that generate and measure; 0: this process alone."""
    gpus: bool = False
    """Each worker has a GPU too; without workers a GPU is used if there is one."""
    threads: int = os.cpu_count() or 1
    """Threads of each worker that decode."""

    def __post_init__(self) -> None:
        if not 1 <= self.shown <= 6:
            raise ValueError(f"--shown {self.shown}: must be 1 to 6")
