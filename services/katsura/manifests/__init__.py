"""The custom resources as typed data: one definition that `katsura up`, the planner and the operator read alike.

`kinds` says what a ModelDeployment, a MemoryStore and an Agent are (fields, bounds, defaults, rules between fields);
`document` turns YAML into nodes that know their line; `reader` checks nodes against a kind and collects every problem;
`bundle` reads whole files and checks what concerns several resources. The command line calls `read_manifests`.

Pure: text in, frozen dataclasses or one `ManifestError` out. It opens no file, knows no process and no cluster. A kind
changes by adding only: a field that was published keeps its name, type and meaning.
"""
