"""Build the images of deploy/docker/Dockerfile and write them as archives that nodes can import.

    python deploy/images.py --out .bench/images            every image of the demo, as docker-archives
    python deploy/images.py --target operator --base python:3.11-slim

With docker the file is built as it stands. Without a daemon buildah builds the same file; where no image can be pulled,
debootstrap makes the base image from the distribution's packages. An archive whose image has not changed is left alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
REGISTRY = "localhost/"
TARGETS = {"services-demo": "katsura/services:{version}-demo", "engine-demo": "katsura/engine:{version}-demo"} | {
    "operator": "katsura/operator:{version}",
    "services": "katsura/services:{version}",
    "engine": "katsura/engine:{version}",
}
"""Target of the Dockerfile to the name that the chart asks for."""
DEMO = ("services-demo", "engine-demo", "operator")
_BASE = f"{REGISTRY}katsura-base:1"
_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
_SUITE = "bookworm"


@dataclass(frozen=True)
class Builder:
    """docker or buildah."""

    tool: str

    @classmethod
    def find(cls) -> Builder:
        """docker where its daemon answers, else buildah."""
        docker = shutil.which("docker")
        if docker and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0:  # noqa: S603
            return cls("docker")
        if shutil.which("buildah"):
            return cls("buildah")
        raise SystemExit("images need docker, or buildah and debootstrap: apt-get install buildah debootstrap")

    def build(self, target: str, name: str, base: str) -> None:
        """One target of the Dockerfile as image `name`."""
        told = {"BASE": base} | {k: os.environ[k] for k in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL") if k in os.environ}
        line = [self.tool, "build", "-f", "deploy/docker/Dockerfile", "--target", target, "-t", name]
        line += [part for key, value in told.items() if value for part in ("--build-arg", f"{key}={value}")]
        if self.tool == "buildah":
            line += ["--layers", "--network", "host"]
            # What pip needs to know of this machine, without a trace of it in the image.
            known = ["/etc/ssl/certs", "/etc/pip.conf", *os.environ.get("PIP_FIND_LINKS", "").split()]
            line += [part for path in known if Path(path).exists() for part in ("-v", f"{path}:{path}:ro")]
        self._run([*line, "."])

    def save(self, name: str, archive: Path) -> None:
        """Write `name` as a docker-archive, unless the archive is that image already."""
        inspect = [self.tool, "inspect", "--format", "{{.Id}}" if self.tool == "docker" else "{{.FromImageID}}", name]
        identity = self._run(inspect, quiet=True).strip()
        mark = archive.with_suffix(".id")
        if archive.exists() and mark.exists() and mark.read_text() == identity:
            return
        if self.tool == "docker":
            self._run(["docker", "save", "-o", str(archive), name])
        else:
            archive.unlink(missing_ok=True)
            self._run(["buildah", "push", "-q", name, f"docker-archive:{archive}:{name}"])
        mark.write_text(identity)

    def base(self) -> str:
        """A base image: the Dockerfile's own for docker, else one made here."""
        if self.tool == "docker":
            return "python:3.11-slim"
        if self._run(["buildah", "images", "-q", "--filter", f"reference={_BASE}"], quiet=True).strip():
            return _BASE
        if not shutil.which("debootstrap"):
            raise SystemExit("a base image is made by debootstrap: apt-get install debootstrap, or name one by --base")
        with tempfile.TemporaryDirectory() as folder:
            root, layer = Path(folder) / "root", Path(folder) / "root.tar"
            self._run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root)])
            with tarfile.open(layer, "w") as tar:
                tar.add(root, ".")
            made = self._run(["buildah", "from", "scratch"], quiet=True).strip()
            self._run(["buildah", "add", "-q", made, str(layer), "/"])
            self._run(["buildah", "commit", "-q", "--rm", made, _BASE])
        return _BASE

    def _run(self, line: list[str], *, quiet: bool = False) -> str:
        # Containers of a builder without privileges: no namespaces, no mounts but those named.
        env = {**os.environ, "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "overlay"}
        done = subprocess.run(line, cwd=PROJECT, env=env, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise SystemExit(f"{' '.join(line[:3])} failed:\n{(done.stdout + done.stderr)[-4000:]}")
        return done.stdout if quiet else ""


def version() -> str:
    """The chart's appVersion: what its images are called."""
    lines = (PROJECT / "charts" / "katsura" / "Chart.yaml").read_text().splitlines()
    return next(line.split(":")[1].strip().strip('"') for line in lines if line.startswith("appVersion:"))


def build(targets: tuple[str, ...], out: Path | None, base: str = "") -> list[Path]:
    """Build `targets`; archives of them in `out`, if it is named."""
    builder = Builder.find()
    base = base or builder.base()
    archives = []
    for target in targets:
        name = REGISTRY + TARGETS[target].format(version=version())
        builder.build(target, name, base)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            archives.append(out / f"{target}.tar")
            builder.save(name, archives[-1])
    return archives


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=TARGETS, help=f"default: {', '.join(DEMO)}")
    parser.add_argument("--base", default="", help="base image (default: python:3.11-slim, or one made here)")
    parser.add_argument("--out", type=Path, help="folder for archives (default: none are written)")
    said = parser.parse_args()
    for archive in build(tuple(said.target or DEMO), said.out, said.base):
        print(archive)


if __name__ == "__main__":
    main()
