"""HTTP routes: each module reads requests, has a `Turn` or a client do the work, and shapes the reply."""
