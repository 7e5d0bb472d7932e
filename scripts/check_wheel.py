"""Checks what a user's machine asks of a wheel: no newer glibc than it has, no library that it may lack, and
no symbol of ours in anyone's way. Usage: check_wheel.py WHEEL"""

import io
import re
import subprocess
import sys
import zipfile

from elftools.elf.elffile import ELFFile

# Ubuntu 22.04, which TPU VMs run.
NEWEST_GLIBC = (2, 35)
EXTENSION = "torchtpu_dynamo/_torchtpu.abi3.so"
# Part of every Linux that can run torch.
SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "ld-linux-x86-64.so.2"}
EXTRAS = {"cpu": "xla-cpu-pjrt", "tpu": "libtpu", "cuda": "jax-cuda13-pjrt"}


def problems(path: str) -> list[str]:
    found = []
    with zipfile.ZipFile(path) as wheel:
        (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        requirements = wheel.read(metadata).decode()
        elf = ELFFile(io.BytesIO(wheel.read(EXTENSION)))

    if "-cp311-abi3-manylinux_" not in path:
        found.append("the wheel is not tagged cp311-abi3 and manylinux")
    for extra, package in EXTRAS.items():
        requirement = rf"^Requires-Dist: {package}\b.*extra == ['\"]{extra}['\"]"
        if not re.search(requirement, requirements, re.MULTILINE):
            found.append(f"the extra [{extra}] does not bring {package}")

    # auditwheel knows which symbol versions and libraries each manylinux tag allows.
    shown = subprocess.run([sys.executable, "-m", "auditwheel", "show", path], capture_output=True, text=True)
    fits = re.search(r'platform tag:\s*"manylinux_(\d+)_(\d+)_', shown.stdout)
    if shown.returncode != 0 or fits is None:
        found.append(f"auditwheel finds no manylinux tag that fits:\n{shown.stdout}{shown.stderr}")
    elif (int(fits[1]), int(fits[2])) > NEWEST_GLIBC:
        found.append(f"auditwheel finds symbols newer than glibc {NEWEST_GLIBC}:\n{shown.stdout}")

    dynamic = elf.get_section_by_name(".dynamic")
    needed = {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
    if lacking := sorted(needed - SYSTEM_LIBRARIES):
        found.append(f"the extension needs {lacking}, which an image with torch may lack")
    exported = {
        symbol.name
        for symbol in elf.get_section_by_name(".dynsym").iter_symbols()
        if symbol.entry.st_shndx != "SHN_UNDEF" and symbol.entry.st_info.bind != "STB_LOCAL"
    }
    if exported != {"PyInit__torchtpu"}:
        extra = sorted(exported - {"PyInit__torchtpu"})
        found.append(f"the extension exports {len(extra)} symbols besides its own, such as {extra[:5]}")
    return found


def main() -> int:
    (path,) = sys.argv[1:]
    found = problems(path)
    for problem in found:
        print(f"error: {path}: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
