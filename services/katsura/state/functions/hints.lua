-- Leases, KV events, coordination and tables. Keys are built and documented in state/keys.py; times are milliseconds
-- of the server's clock. A refusal is an answer (a string), not an error, so that callers tell it from a fault.

local KEEP_KV_MS = 600000 -- how long events and snapshot outlive their shard

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The life that holds a lease: {incarnation, start_ms}, or nil where none does.
local function holder(lives, expiry, id, now)
  local until_ms = redis.call('ZSCORE', expiry, id)
  if not until_ms or tonumber(until_ms) <= now then return nil end
  local life = redis.call('HGET', lives, id)
  if not life then return nil end
  local incarnation, start_ms = life:match('^(%d+) (%d+)$')
  return {incarnation, tonumber(start_ms)}
end

local function tell(fleet, kind, a, b)
  redis.call('XADD', fleet, 'MAXLEN', '~', 1024, '*', 'k', kind, 'a', a, 'b', b)
end

-- Whether readers could not rebuild a mirror: no snapshot of this life, or batches are missing after it ('w').
local function snapshot_missing(snapshot, incarnation)
  local at = redis.call('HMGET', snapshot, 'i', 'w')
  return (at[1] ~= incarnation or at[2] == '1') and 1 or 0
end

-- KEYS leases, lives, expiry, fleet, kv, snapshot
-- ARGV role, id, incarnation, start_ms, ttl_ms, record
-- -> 1 a KV snapshot is wanted, 0 not, 'LEASE_LOST' a later life holds the lease
register('put_lease', function(keys, args)
  local leases, lives, expiry, fleet, kv, snapshot = unpack(keys)
  local role, id, incarnation, start_ms, ttl_ms, record = unpack(args)
  local now = now_ms()
  local held = holder(lives, expiry, id, now)
  if held and held[1] ~= incarnation and held[2] > tonumber(start_ms) then return 'LEASE_LOST' end
  redis.call('HSET', leases, id, string.format('%d', now) .. '\n' .. record)
  redis.call('HSET', lives, id, incarnation .. ' ' .. start_ms)
  redis.call('ZADD', expiry, now + tonumber(ttl_ms), id)
  tell(fleet, 'lease', role, id)
  redis.call('PEXPIRE', kv, KEEP_KV_MS)
  redis.call('PEXPIRE', snapshot, KEEP_KV_MS)
  return snapshot_missing(snapshot, incarnation)
end)

-- KEYS leases, lives, expiry, fleet   ARGV role, id, incarnation
register('drop_lease', function(keys, args)
  local leases, lives, expiry, fleet = unpack(keys)
  local role, id, incarnation = unpack(args)
  local held = holder(lives, expiry, id, now_ms())
  if not held or held[1] ~= incarnation then return 0 end
  redis.call('HDEL', leases, id)
  redis.call('HDEL', lives, id)
  redis.call('ZREM', expiry, id)
  tell(fleet, 'lease', role, id)
  return 1
end)

-- KEYS leases, lives, expiry   -> records of live leases, each '<put_ms>\n<record>'; expired ones are removed
register('list_leases', function(keys)
  local leases, lives, expiry = unpack(keys)
  local now = now_ms()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', now)) do
    redis.call('HDEL', leases, id)
    redis.call('HDEL', lives, id)
    redis.call('ZREM', expiry, id)
  end
  local found = {}
  for _, id in ipairs(redis.call('ZRANGE', expiry, 0, -1)) do
    local record = redis.call('HGET', leases, id)
    if record then found[#found + 1] = record end
  end
  return found
end)

-- KEYS lives, expiry, kv, snapshot   ARGV id, incarnation, sequence, events, batches kept
-- -> 1 a snapshot is wanted, 0 not, 'LEASE_LOST' another life holds the lease
register('publish_kv', function(keys, args)
  local lives, expiry, kv, snapshot = unpack(keys)
  local id, incarnation, sequence, events, kept = unpack(args)
  local held = holder(lives, expiry, id, now_ms())
  if held and held[1] ~= incarnation then return 'LEASE_LOST' end
  local last = redis.call('XREVRANGE', kv, '+', '-', 'COUNT', 1)[1]
  local known = last and last[2][2] == incarnation and tonumber(last[2][4]) or 0
  redis.call('XADD', kv, 'MAXLEN', '=', kept, '*', 'i', incarnation, 's', sequence, 'e', events)
  redis.call('PEXPIRE', kv, KEEP_KV_MS)
  local at = redis.call('HMGET', snapshot, 'i', 's')
  if at[1] ~= incarnation then return 1 end
  local taken, new = tonumber(at[2]), tonumber(sequence)
  if new > math.max(known, taken) + 1 or new - taken > tonumber(kept) / 2 then
    redis.call('HSET', snapshot, 'w', 1)
  end
  return snapshot_missing(snapshot, incarnation)
end)

-- KEYS lives, expiry, kv, snapshot   ARGV id, incarnation, sequence, hashes, batches kept   -> 1 or 'LEASE_LOST'
register('put_snapshot', function(keys, args)
  local lives, expiry, kv, snapshot = unpack(keys)
  local id, incarnation, sequence, hashes, kept = unpack(args)
  local held = holder(lives, expiry, id, now_ms())
  if held and held[1] ~= incarnation then return 'LEASE_LOST' end
  redis.call('HSET', snapshot, 'i', incarnation, 's', sequence, 'h', hashes, 'w', 0)
  redis.call('XADD', kv, 'MAXLEN', '=', kept, '*', 'i', incarnation, 's', sequence)
  redis.call('PEXPIRE', snapshot, KEEP_KV_MS)
  redis.call('PEXPIRE', kv, KEEP_KV_MS)
  return 1
end)

-- KEYS affinity   ARGV shard id   -> 1 where it named that shard and is gone
register('drop_affinity', function(keys, args)
  local record = redis.call('GET', keys[1])
  if not record or cjson.decode(record).shard_id ~= args[1] then return 0 end
  return redis.call('DEL', keys[1])
end)

-- A fence is '<token> <incarnation> <holder>'.
-- KEYS coordinator, tokens   ARGV incarnation, holder, ttl_ms   -> fence of whoever holds the lease now
register('hold', function(keys, args)
  local coordinator, tokens = unpack(keys)
  local incarnation, name, ttl_ms = unpack(args)
  local who = incarnation .. ' ' .. name
  local fence = redis.call('GET', coordinator)
  if not fence then
    fence = redis.call('INCR', tokens) .. ' ' .. who
    redis.call('SET', coordinator, fence, 'PX', ttl_ms)
  elseif fence:match('^%d+ (.*)$') == who then
    redis.call('PEXPIRE', coordinator, ttl_ms)
  end
  return fence
end)

-- KEYS coordinator   ARGV fence
register('release', function(keys, args)
  if redis.call('GET', keys[1]) ~= args[1] then return 0 end
  return redis.call('DEL', keys[1])
end)

-- KEYS coordinator, table, names, fleet   ARGV fence, expected version, record, name, deployment
-- -> {'OK', version}, {'LEASE_LOST'} or {'STALE_EPOCH'}
register('write_table', function(keys, args)
  local coordinator, tbl, names, fleet = unpack(keys)
  local fence, expected, record, name, deployment = unpack(args)
  if redis.call('GET', coordinator) ~= fence then return {'LEASE_LOST'} end
  local last = redis.call('XREVRANGE', tbl, '+', '-', 'COUNT', 1)[1]
  if (last and last[1] or '') ~= expected then return {'STALE_EPOCH'} end
  local version = redis.call('XADD', tbl, 'MAXLEN', '=', 1, '*', 't', record)
  redis.call('PERSIST', tbl)
  redis.call('SADD', names, name)
  tell(fleet, 'table', deployment, '')
  return {'OK', version}
end)

-- The empty record stays for a minute, so that whoever waits sees the version change.
-- KEYS coordinator, table, names, fleet   ARGV fence, empty record, name, deployment   -> {'OK'} or {'LEASE_LOST'}
register('drop_table', function(keys, args)
  local coordinator, tbl, names, fleet = unpack(keys)
  local fence, record, name, deployment = unpack(args)
  if redis.call('GET', coordinator) ~= fence then return {'LEASE_LOST'} end
  redis.call('XADD', tbl, 'MAXLEN', '=', 1, '*', 't', record)
  redis.call('PEXPIRE', tbl, 60000)
  redis.call('SREM', names, name)
  tell(fleet, 'table', deployment, '')
  return {'OK'}
end)
