-- Memory trees, part 1, continued: leases on branches. A branch keeps the newest one: `lease_token`, drawn from the tree's
-- counter, `lease_holder` ('' once it was given back) and `lease_end_ms`. What changes a path asks `guard`; summaries and
-- verdicts do not, so that whoever maintains a branch never stands in the way of whoever writes it.

local function lease_lost(branch)
  return {'BRANCH_LEASE_LOST', branch.head, branch.name, branch.lease_holder or ''}
end

-- nil where a write may change the branch, else the answer. A lease that ended guards nothing, but its token is good until
-- somebody takes the branch.
local function guard(t, args, branch)
  if args.lease then
    if args.lease ~= branch.lease_token or branch.lease_holder == '' then return lease_lost(branch) end
  elseif branch.lease_token and branch.lease_end_ms > now_ms(t) then
    return {'LEASE_HELD', branch.head, branch.name, branch.lease_holder}
  end
end

-- Whether somebody holds a branch of the tree.
local function is_leased(t)
  local now = now_ms(t)
  for _, text in ipairs(redis.call('HVALS', t.branches)) do
    if (cjson.decode(text).lease_end_ms or 0) > now then return true end
  end
  return false
end

-- Register a write that changes a path, and the same under a lease: its token comes last in ARGV.
local function register_write(name, write)
  register(name, write)
  register(name .. '_leased', function(keys, args)
    args.lease = tonumber(table.remove(args))
    return write(keys, args)
  end)
end

-- The tree, and a branch that may be leased; or nil, nil and the answer.
local function leasable(keys, args)
  local t, missing = open(keys)
  if not t then return nil, nil, missing end
  local branch, unknown = load_branch(t, args[1])
  if not branch then return nil, nil, unknown end
  if branch.state ~= ACTIVE then return nil, nil, not_writable(branch) end
  return t, branch
end

-- ARGV: branch, holder, ms. Not a commit, as the two below. {'OK', branch JSON}
register('lease', function(keys, args)
  local t, branch, answer = leasable(keys, args)
  if answer then return answer end
  if branch.lease_holder ~= args[2] then
    local held = guard(t, {}, branch)
    if held then return held end
  end
  branch.lease_token, branch.lease_holder = redis.call('HINCRBY', t.meta, 'claims', 1), args[2]
  branch.lease_end_ms = now_ms(t) + tonumber(args[3])
  save_branch(t, branch)
  return {'OK', cjson.encode(branch)}
end)

-- ARGV: branch, token, ms.
register('renew_lease', function(keys, args)
  local t, branch, answer = leasable(keys, args)
  if not answer then answer = guard(t, {lease = tonumber(args[2])}, branch) end
  if answer then return answer end
  branch.lease_end_ms = now_ms(t) + tonumber(args[3])
  save_branch(t, branch)
  return {'OK', cjson.encode(branch)}
end)

-- ARGV: branch, token. The token stays, so that giving back twice is giving back once.
register('release_lease', function(keys, args)
  local t, branch, answer = leasable(keys, args)
  if answer then return answer end
  if tonumber(args[2]) ~= branch.lease_token then return lease_lost(branch) end
  branch.lease_holder, branch.lease_end_ms = '', 0
  save_branch(t, branch)
  return {'OK', cjson.encode(branch)}
end)
