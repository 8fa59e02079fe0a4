#!/usr/bin/env bash
# Makes an environment of its own for TRL's GRPOTrainer, the other side of update_vs_trl.py and the oracle of conformance test C13.
#   tests/performance/against_trl/environment.sh FOLDER        (about 2 GB; minutes)
# torch, torchvision and transformers are those of the project's lock, so that the two sides differ in nothing else.
# Without vLLM, which TRL would import at every start (25 s) and which neither side needs here.
set -euo pipefail
folder=${1:?usage: environment.sh FOLDER}
root=$(cd "$(dirname "$0")/../../.." && pwd)
python=$(command -v python3.11)
pinned() { sed -n "s/^\($1==[^ ]*\).*/\1/p" "$root/requirements/cpu.txt"; }  # without the hashes

"$python" -m venv "$folder"
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The CPU build comes from the configured package indexes, else from PyTorch's own
index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
"$folder/bin/pip" install --quiet "$(pinned torch)+cpu" || "$folder/bin/pip" install --quiet --extra-index-url "$index" "$(pinned torch)+cpu"
"$folder/bin/pip" install --quiet --no-deps "$(pinned torchvision)"
"$folder/bin/pip" install --quiet "$(pinned transformers)" "$(pinned datasets)" "$(pinned pillow)" \
  "$(pinned numpy)" "$(pinned jinja2)" trl==1.16.0
# torchvision's C++ library may be the CUDA build; this declares the two operators that it then lacks
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp "$root"/requirements/ril_torchvision.{py,pth} "$site/"
"$folder/bin/python" -c 'import torch, torchvision, transformers, trl; print("torch", torch.__version__, "transformers", transformers.__version__, "trl", trl.__version__)'
