"""A cluster of an ordinary user: `nobody`, in a user namespace, with a /dev/net/tun that is open to all (a device node of our
own, bound over the machine's in a mount namespace: nothing outside the test changes)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from tests.support.cluster import ROOT

pytestmark = [pytest.mark.root, pytest.mark.system]

NOBODY = 65534
SCRIPT = """
set -e
mknod "$1/tun" c 10 200 && chmod 666 "$1/tun" && mount --bind "$1/tun" /dev/net/tun
exec setpriv --reuid 65534 --regid 65534 --clear-groups env -i HOME="$1" PODWIRE_HOME="$1/run" \
  PATH="$1/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin" bash -c "$2"
"""
SESSION = """
set -e
podwire="python -m podwire.cli.main"
trap '$podwire down --name podwire' EXIT
$podwire up
$podwire apply -f examples/web.yaml
$podwire rollout status deploy/web --timeout 60s
$podwire wait pod/client --for=condition=Ready --timeout 60s
$podwire exec client -- curl -sS -m 5 http://web.default.svc.cluster.local
$podwire node node1 -- ip -d link show flannel.1
$podwire trace client http://web
$podwire exec --edge -- ping -c 1 -W 5 192.168.1.11
$podwire exec client -- curl -sS -m 5 http://192.0.2.7/
"""


def as_nobody(*argv: str) -> str:
    """What a command prints when `nobody` runs it; "" if he may not."""
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    try:
        return subprocess.run(argv, capture_output=True, text=True, cwd="/", **who).stdout.strip()
    except PermissionError:
        return ""


def readable_python() -> str:
    """An interpreter of this version that others may run; "" if there is none."""
    version = "import sys; print(sys.version_info[:2])"
    candidates = [os.path.realpath(sys.executable), shutil.which("python3", path="/usr/local/bin:/usr/bin") or ""]
    return next((each for each in candidates if each and as_nobody(each, "-c", version) == str(sys.version_info[:2])), "")


@pytest.fixture
def home():
    python = readable_python()
    if not python or not as_nobody("cat", str(ROOT / "pyproject.toml")):
        pytest.skip("this checkout, or every Python of this version, is closed to ordinary users")
    directory = Path(tempfile.mkdtemp(prefix="pw-user", dir="/tmp"))  # short: unix sockets go below it
    directory.chmod(0o755)
    (directory / "run").mkdir()
    os.chown(directory / "run", NOBODY, NOBODY)
    subprocess.run([python, "-m", "venv", "--without-pip", directory / "venv"], check=True)
    [packages] = (directory / "venv/lib").glob("python*/site-packages")
    paths = [ROOT / name for name in ("core", "apiserver", "nodeagent", "dns", "cni", ".")] + [
        Path(sysconfig.get_path("purelib"))
    ]
    (packages / "checkout.pth").write_text("\n".join(map(str, paths)))
    yield directory
    shutil.rmtree(directory)


def test_the_whole_way_without_root(home):
    argv = ["unshare", "--mount", "--propagation", "private", "bash", "-c", SCRIPT, "bash", str(home), SESSION]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vxlan id 1" in done.stdout
    assert "in a tunnel to" in done.stdout
    assert "192.0.2.7:80, outside the cluster" in done.stdout
    assert not list((home / "run").glob("*/cluster.json"))
