"""Our own kernels in C: products, FFN and paged attention of a decode loop, in f32 on one thread of an x86 CPU.

`model` calls them where a kernel plan says so; nobody else does. Built when Katsura is installed and a C compiler is
there (`hatch_build.py`); without them every process computes with torch's operators. Knows tensors, no models.
"""
