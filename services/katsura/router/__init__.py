"""The router: which model, which shard and why; and, in the one replica that coordinates, the tables everybody follows.

The gateway asks it before each step (ChooseModel, ChooseShard) and tells it how that went; `katsura status` looks at
GetRouter. It follows leases, KV events and the ledger of decisions in the hints store, so replicas that have read alike
answer alike and one that was killed is rebuilt from the store. It must not know prompts (page hashes suffice), speak to
shards or members (they read tables themselves), or touch trees.
"""
