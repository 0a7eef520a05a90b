"""What the graded tests stand on. It imports nothing of the package that is graded, and works without it.

To compare: numbers, compare. Points and pytest: rubric, plugin, submission. What code under test must not do:
fence (use the answers), settings (leave torch changed), remarks (call what does the part itself). The grader:
supervise, processes, pipes, workspace, record, formats, output. The rest serves the tests of one kind of
problem each:

    model_truth, model_checks, self_attention_checks            the model
    adamw                                                       the optimizer
    fake_device                                                 benchmarking_script
    recording                                                   nsys_profile
    accumulation, autocast_types                                mixed precision
    blocks                                                      gradient_checkpointing
    row_kernels, kernel_calls, watching                         kernels
    attention_truth, attention_mistakes, attention_checks       flash attention
    timed_calls, timed_results, timed_work                      leaderboard
    ranks, collectives, data_parallel                           several devices
    sharded_state, sharded_weights                              optimizer_state_sharding, fsdp

A truth is computed in float64 by other means than an implementation would use; checks hold it beside what was
returned; mistakes are what people get wrong, with what then comes out.
"""
