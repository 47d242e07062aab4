"""Which role goes on which node, what it costs, and why: a cost model, an integer program and their explanation.

    card        config.json -> parameters, KV bytes, active bytes, FLOPs        catalogue   node labels -> device
    cost        one replica's step time and capacity on a device                split       attention + expert pools
    patterns    every instance shape that keeps the objectives                  program     counts of them, with a bound
    fit         coefficients from measurements                                  trials      what to run next
    pipelines   a model cut by layers over nodes        configurations      what can be run, and what ran
    agents      runs of agents as demand, and how long they take
    pairs       prefill and decode apart            rounding    a tighter bound         search    which columns to try
    curve       an instance's pace at every batch   simulate    a plan under a trace, with replans on the way
    tables      measured points as a user has them      interpolate  what lies between them
    pack        concrete nodes          replan   what to move, in which order   explain     why, and why not otherwise

`katsura plan` and the operator call `planner.plan` on a `problem.Problem`, which `katsura.manifests.problem` makes
from custom resources and nodes. Pure: numbers in, plans out. It knows no cluster, no file format and no clock but the
solver's own; `highs` alone imports the solver.
"""
