#!/usr/bin/env python3
"""stub_cuda.py SITE_PACKAGES: let the CUDA build of torch load on a CPU-only box without the big
nvidia-* wheels: a tiny stub library takes the place of each missing CUDA maths library."""
import collections, glob, os, re, subprocess, sys
lib = os.path.join(sys.argv[1], "torch", "lib")
LIBS = re.compile(r"lib(cublas|cublasLt|cudnn|cufft|curand|cusparse|cusparseLt|cusolver|nccl|nvrtc|nvshmem_host)\.so")
SYMS = re.compile(r"(cublas|cudnn|cufft|curand|cusparse|cusolver|p?nccl|nvrtc|nvshmem)")
run = lambda *a: subprocess.run(a, capture_output=True, text=True).stdout
need, owner, syms = set(), {}, collections.defaultdict(set)
for f in glob.glob(lib + "/*.so") :
    need |= {n for n in re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", f)) if LIBS.match(n)}
    cur = None
    for line in run("readelf", "-V", "-W", f).splitlines():
        if m := re.search(r"File: (\S+)", line): cur = m[1]
        elif (m := re.search(r"Name: (\S+)\s+Flags", line)) and cur: owner[m[1]] = cur
    for s in re.findall(r" [Uwv] (\S+)", run("nm", "-D", "--undefined-only", f)):
        if SYMS.match(s):
            name, _, ver = s.partition("@")
            syms[ver.lstrip("@")].add(name)
for n in sorted(need):
    vers = {v for v in owner if owner[v] == n} or {""}
    if n == sorted(need)[0]: vers.add("")
    names = {v: syms.get(v, set()) if (v or n == sorted(need)[0]) else set() for v in vers}
    src = "".join(f"int {s}(void) {{ return 1; }}\n" for s in sorted(set().union(*names.values()))) or "int stub_;\n"
    script = "".join(f"{v} {{ {'global: ' + '; '.join(sorted(ss)) + ';' if ss else ''} }};\n" for v, ss in names.items() if v)
    open(lib + "/stub.map", "w").write(script)
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-Wl,-soname," + n, *(["-Wl,--version-script," + lib + "/stub.map"] if script else []),
                    "-x", "c", "-", "-o", f"{lib}/{n}"], input=src, text=True, check=True)
    print(n, {v: len(s) for v, s in names.items()})
