-- The whole database, in numbered sections. Each is applied once, in order, under an advisory lock, and its SHA-256 is
-- recorded: a landed section never changes, it is followed by another.

-- section 1: installation, replicas, changes
-- section 2: people, agents, connections, credentials
-- section 3: evidence
