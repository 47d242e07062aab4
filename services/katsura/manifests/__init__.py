"""The custom resources as typed data: one definition that `katsura up`, the planner and the operator read alike.

`kinds` says what a ModelDeployment, a MemoryStore and an Agent are (fields, bounds, defaults, rules between fields);
`document` turns YAML into nodes that know their line; `reader` checks nodes against a kind and collects every problem;
`bundle` reads whole files and checks what concerns several resources. The command line calls `read_manifests`.
`cluster` reads nodes and other pods, `problem` states the planner's problem, and `decision.decide` goes the whole way
from what an API server says to what should run where: it is the operator's door to the planner.

Pure: text in, frozen dataclasses or one `ManifestError` out. It opens no file, knows no process and no cluster. A kind
changes by adding only: a field that was published keeps its name, type and meaning.
"""
