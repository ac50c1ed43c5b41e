"""The machine code of the GPU kernels, executed and counted on a CPU: what docs/gpu_cuda.md says of it is kept here.

cubin.py gets at the code, parse.py reads its disassembly, machine.py runs a warp of 32 lanes at once, block.py a thread block;
integer.py, floating.py, half.py, movement.py, control.py, access.py, barriers.py and products.py hold the instructions by subject;
memory.py is what they read and write. launches.py has the tests' host runtime cut the tiles of a call, slots.py counts what was
executed, timing.py estimates how long a warp waits, bounds.py is the one table of what may be spent.
"""
