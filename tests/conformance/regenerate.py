"""Makes the golden files again: python tests/conformance/regenerate.py FOLDER [oracle ...]

FOLDER takes one virtual environment an oracle (about 250 MB with ray); each holds that oracle and the few packages
named below, and sees those of the environment that runs this. Needs a package index; takes about two minutes.
"""

import site
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
# what is installed with --no-deps: the oracle, and what it imports that the project does not have
ORACLES = {
    "formula": (),
    "trl": ("trl==1.16.0", "accelerate==1.15.0"),
    "verl": (
        "verl==0.9.1", "omegaconf==2.4.0", "hydra-core==1.3.8", "antlr4-python3-runtime==4.9.3", "tensordict==0.15.3",
        "codetiming==1.4.0", "pyvers", "ray==2.*", "torchdata", "peft", "accelerate==1.15.0",
    ),
    "openrlhf": ("openrlhf==0.10.4",),
}  # fmt: skip


def environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """The interpreter of a virtual environment with `packages`."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=False)
        (inside,) = folder.glob("lib/python*/site-packages")
        (inside / "project.pth").write_text(f"import site; site.addsitedir({site.getsitepackages()[0]!r})\n")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--ignore-installed"]
        if packages:
            subprocess.run([*pip, "--no-build-isolation", *packages], check=True, timeout=1200)
    return python


def main() -> None:
    """Draws the cases, then asks each oracle."""
    folder, wanted = Path(sys.argv[1]), sys.argv[2:] or list(ORACLES)
    sys.path.insert(0, str(HERE))
    import cases
    import numpy as np

    cases.GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(cases.GOLDEN / "cases.npz", **cases.drawn())
    for name in wanted:
        script = HERE / "oracles" / ("formula.py" if name == "formula" else f"with_{name}.py")
        subprocess.run([str(environment(folder / name, ORACLES[name])), str(script)], check=True, timeout=600)


if __name__ == "__main__":
    main()
