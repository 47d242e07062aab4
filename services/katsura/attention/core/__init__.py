"""What a shard decides, as plain data: which tokens a step computes, which pages they use, which frames it sends.

Pure: no tensors, no clocks, no I/O; time is an argument. `compute` executes a `StepPlan` and hands the draws back.
"""
