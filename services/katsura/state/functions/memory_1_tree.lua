-- Memory trees, part 1: what every function below stands on. Keys and formats: state/keys.py.
--
-- Called with KEYS[1] = the tree's `meta` key; the tree's other keys share its hash tag and are derived from it.
-- A write takes ARGV[1..4] = events kept, replays kept, request id ('' for none), digest of the request's named fields.
-- Each function checks everything first and writes last (a script that fails half-way is not rolled back), answers
-- {'OK', ...} or {reason, ...}, and does work bounded by its arguments, never by the size of the tree.

local ROOT = {id = 0, parent = 0, len = 0, jump = 0, depth = 0, tokens = 0, cum = 0, a = 0, b = 0,
              hash = '0000000000000000000000000000000000000000000000000000000000000000'}
local ACTIVE, ABANDONED, MERGED = 1, 2, 4  -- 3, FROZEN, is none of what is told apart here
local VALID, FAILED = 2, 3
local EVENT = {CREATED = 2, GROWN = 3, COMPRESSED = 4, MAINTAINED = 5, REVISED = 6, FORKED = 7, DELETED = 8,
               UPDATED = 9, ATTACHED = 10, REDACTED = 11, SLOTS_SET = 12,
               MERGED = 13, REFERRED = 14, INVALIDATED = 15, RELEASED = 16,
               COLLECTED = 17, STALE = 18, BRANCH_UPDATED = 19}
local DELETED_EVENTS_KEPT_MS = 60000
local SETTLE_LOOKS = 512
local SUFFIXES = {'meta', 'branches', 'nodes', 'links', 'blobs', 'steps', 'kids', 'verdicts', 'versions', 'replays',
                  'order', 'events', 'tokenizers', 'extras', 'slot_heads', 'slot_maps',
                  'rollups', 'covers', 'work', 'compress_due', 'validate_due', 'usage',
                  'references', 'dependents', 'crossed', 'stale', 'stale_ids', 'stale_queue', 'waits', 'gone',
                  'looked'}

-- A tree's keys are made when they are asked for: few calls need more than ten of them.
local IS_KEY = {cold = true}
for i = 1, #SUFFIXES do IS_KEY[SUFFIXES[i]] = true end
local KEYS = {__index = function(t, name)
  if not IS_KEY[name] then return nil end
  local key = t.prefix .. name
  t[name] = key
  return key
end}

-- `places` holds the nodes that were looked at or made by this call (no link ever changes), `texts` branches as saved.
local function keys_of(meta_key)
  return setmetatable({prefix = string.sub(meta_key, 1, -5), places = {}, texts = {}}, KEYS)
end

-- What to answer where `meta` tells of no tree.
local function absent(t)
  return {redis.call('EXISTS', t.cold) == 1 and 'TREE_COLD' or 'TREE_NOT_FOUND'}
end

-- The tree of KEYS[1], or nil and the answer to give.
local function open(keys)
  local t = keys_of(keys[1])
  local m = redis.call('HMGET', t.meta, 'revision', 'next', 'incarnation', 'default', 'ttl_ms', 'branch_count',
                       'updated', 'raw_limit', 'holds', 'bytes')
  if not m[1] then return nil, absent(t) end
  t.revision, t.next, t.incarnation, t.default = tonumber(m[1]), tonumber(m[2]), m[3], m[4]
  t.ttl_ms, t.branch_count, t.updated, t.raw_limit = tonumber(m[5]), tonumber(m[6]), tonumber(m[7]), tonumber(m[8])
  t.opened_at, t.bytes, t.bytes_before, t.holds = t.next, 0, tonumber(m[10] or 0), tonumber(m[9] or 0)
  return t
end

-- Milliseconds by the store's clock; within a tree it never steps back.
local function now_ms(t)
  local time = redis.call('TIME')
  return math.max(tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000), t.updated or 0)
end

local function load_branch(t, name)
  if name == '' then name = t.default end
  local text = redis.call('HGET', t.branches, name)
  if not text then return nil, {'BRANCH_NOT_FOUND', name} end
  local branch = cjson.decode(text)
  branch.name = name
  return branch
end

local function save_branch(t, branch)
  local text = cjson.encode(branch)
  redis.call('HSET', t.branches, branch.name, text)
  t.texts[branch] = text
end

-- The answer where a branch is not ACTIVE.
local function not_writable(branch) return {'BRANCH_NOT_WRITABLE', branch.name, branch.state, branch.held_by or ''} end

-- A node's place: parent, len (nodes up to it), jump (an ancestor further up), depth, tokens, cum (tokens up to it),
-- a and b (a step: nearest step with an effect, 0; a summary: step before its cover, last step of it), content hash.
local function link(t, id)
  if id == 0 then return ROOT end
  local at = t.places[id]
  if at then return at end
  local raw = redis.call('HGET', t.links, id)
  if not raw then return nil end
  local p, l, j, d, k, c, a, b, h =
    string.match(raw, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%x+)$')
  at = {id = id, parent = tonumber(p), len = tonumber(l), jump = tonumber(j), depth = tonumber(d),
        tokens = tonumber(k), cum = tonumber(c), a = tonumber(a), b = tonumber(b), hash = h, raw = raw}
  t.places[id] = at
  return at
end

-- How many nodes the jump of a node spans that has `len` nodes up to it: the least digit of `len` in skew binary.
local function span(len)
  local digit = 1
  while 2 * digit < len do digit = 2 * digit + 1 end
  while len > 0 do
    while digit > len do digit = (digit - 1) / 2 end
    len = len - digit
    if len == 0 then return digit end
  end
  return 0
end

-- Skew-binary jump pointer (Myers 1983): one per node gives every ancestor in O(log n), and forks share it. Of two jumps of
-- one span a child makes one.
local function child_of(t, id, parent, place)
  local first = span(parent.len)
  place.id, place.parent, place.len = id, parent.id, parent.len + 1
  place.jump = first == span(parent.len - first) and link(t, parent.jump).jump or parent.id
  place.cum = parent.cum + place.tokens
  t.places[id] = place
  return place
end

-- The nearest node at or above `id` whose depth is at most `depth`.
local function climb(t, id, depth)
  local at = link(t, id)
  while at.depth > depth do
    local jump = link(t, at.jump)
    at = jump.depth > depth and jump or link(t, at.parent)
  end
  return at
end

-- The step `id` if it lies on the path that ends at `head`, else nil and the answer to give.
local function on_path(t, head, id)
  local at = link(t, id)
  if not at then return nil, {'NODE_NOT_FOUND', id} end
  if climb(t, head, at.depth).id ~= id then return nil, {'BAD_BOUNDARY', id} end
  return at
end

-- The last slot write on a branch's path. A branch without an entry (forked by a version of us that knew no slots) has
-- what its parent had at the fork, and nothing that was set since.
local function slot_head(t, branch)
  if redis.call('EXISTS', t.slot_heads) == 0 then return 0 end
  local depth, made = branch.depth, math.huge
  while branch do
    local own = redis.call('HGET', t.slot_heads, branch.name)
    if own then
      local at = climb(t, tonumber(own), depth)
      while at.id ~= 0 and tonumber(string.match(redis.call('HGET', t.nodes, at.id), '^%d+')) > made do
        at = link(t, at.parent)
      end
      return at.id
    end
    depth, made = math.min(depth, link(t, branch.fork_node).depth), math.min(made, branch.create_ms)
    branch = branch.parent_branch ~= '' and load_branch(t, branch.parent_branch) or nil
  end
  return 0
end

-- The node's link and its record, as they were written.
local function save_node(t, place, branch, record, now)
  local raw = string.format('%d %d %d %d %d %d %d %d %s', place.parent, place.len, place.jump, place.depth, place.tokens,
                            place.cum, place.a, place.b, place.hash)
  local stored = string.format('%d %d %s\n', now, t.revision + 1, branch) .. record
  redis.call('HSET', t.links, place.id, raw)
  redis.call('HSET', t.nodes, place.id, stored)
  t.bytes = t.bytes + #record
  return raw, stored
end

-- The answer given before to this request id, or nil. It writes, so that the durability barrier that follows the call
-- covers the commit it repeats.
local function replay(t, args)
  local request, digest = args[3], args[4]
  if request == '' then return nil end
  local seen = redis.call('HGET', t.replays, request)
  if not seen then return nil end
  redis.call('HINCRBY', t.meta, 'replayed', 1)
  if string.sub(seen, 1, #digest) ~= digest then return {'REQUEST_ID_REUSED'} end
  return {'OK', string.sub(seen, #digest + 1)}
end

-- What a write to the branch ARGV[5] begins with: the tree and the branch, or nil, nil and the answer to give.
local function begin(keys, args)
  local t, missing = open(keys)
  if not t then return nil, nil, missing end
  local again = replay(t, args)
  if again then return nil, nil, again end
  local branch, unknown = load_branch(t, args[5])
  if not branch then return nil, nil, unknown end
  return t, branch
end

local function remember(t, args, text)
  if args[3] == '' then return end
  redis.call('HSET', t.replays, args[3], args[4] .. text)
  local kept = tonumber(args[2])
  local spare = math.floor(kept / 16)  -- they are dropped by as many, not one at each commit
  if redis.call('RPUSH', t.order, args[3]) > kept + spare then
    redis.call('HDEL', t.replays, unpack(redis.call('LPOP', t.order, spare + 1)))
  end
end

local function expire(t)
  if t.ttl_ms == 0 or t.holds > 0 then return end
  for _, suffix in ipairs(SUFFIXES) do redis.call('PEXPIRE', t[suffix], t.ttl_ms) end
  for _, digest in ipairs(redis.call('SMEMBERS', t.tokenizers)) do
    redis.call('PEXPIRE', t.prefix .. 'tokens:' .. digest, t.ttl_ms)
  end
end

local function persist(t)
  for _, suffix in ipairs(SUFFIXES) do redis.call('PERSIST', t[suffix]) end
  for _, digest in ipairs(redis.call('SMEMBERS', t.tokenizers)) do redis.call('PERSIST', t.prefix .. 'tokens:' .. digest) end
end

local settle  -- memory_1_tree_references.lua

-- `answer` as JSON. A branch that was saved as it is in there is not encoded again.
local function encoded(t, answer)
  local branch = answer.branch and t.texts[answer.branch]
  if not branch then return cjson.encode(answer) end
  answer.branch = nil
  return string.format('{"branch":%s,%s', branch, string.sub(cjson.encode(answer), 2))
end

-- Close a commit: revision, event, replay record, life time. `answer` becomes the JSON that the caller gets; where it
-- says `unsettled`, `settle` is to be called until nothing is left. Behind it stand the nodes and bytes added, which a
-- repeated request is not answered.
local function commit(t, args, now, event, branch_name, ids, answer)
  t.revision = t.revision + 1
  redis.call('HSET', t.meta, 'revision', t.revision, 'updated', now, 'next', t.next or 0,
             'bytes', string.format('%d', (t.bytes_before or 0) + t.bytes))
  redis.call('XADD', t.events, 'MAXLEN', '~', args[1], string.format('%d-%d', t.revision, now),
             'k', event, 'b', branch_name, 'n', table.concat(ids, ' '))
  answer.revision, answer.incarnation, answer.now = t.revision, t.incarnation, now
  if not settle(t, SETTLE_LOOKS) then answer.unsettled = true end
  local text = encoded(t, answer)
  remember(t, args, text)
  expire(t)
  return {'OK', text, (t.next or 0) - (t.opened_at or 0), t.bytes}
end

-- ARGV: 1-4, incarnation, goal, pins, policy, labels, ttl_ms, branch name, raw token limit, roll-up fanout, origin
-- (JSON, '' for none), agent, retention (JSON, '' for none).
register('create', function(keys, args)
  local t = keys_of(keys[1])
  local made = redis.call('HGET', t.meta, 'create')
  if redis.call('EXISTS', t.cold) == 1 then return {'TREE_COLD'} end
  if redis.call('HEXISTS', t.meta, 'importing') == 1 then return {'TREE_EXISTS'} end
  if made then
    redis.call('HINCRBY', t.meta, 'replayed', 1)
    local request, digest, text = string.match(made, '^([^\n]*)\n([^\n]*)\n(.*)$')
    if args[3] == '' or request ~= args[3] then return {'TREE_EXISTS'} end
    if digest ~= args[4] then return {'REQUEST_ID_REUSED'} end
    return {'OK', text}
  end
  local now = now_ms(t)
  local branch = {name = args[11], state = ACTIVE, head = 0, summary_head = 0, boundary = 0, fork_node = 0,
                  parent_branch = '', depth = 0, raw_tokens = 0, hint = 0, cut = 0, create_ms = now, order = 1}
  t.revision, t.incarnation, t.ttl_ms, t.bytes, t.holds = 0, args[5], tonumber(args[10]), 0, 0
  redis.call('UNLINK', t.events, t.looked, t.covers)  -- a version of us that knows them not deleted a tree without
  redis.call('HSET', t.meta, 'next', 0, 'incarnation', args[5], 'goal', args[6], 'pins', args[7], 'policy', args[8],
             'labels', args[9], 'ttl_ms', args[10], 'default', args[11], 'branch_count', 1, 'created', now,
             'raw_limit', args[12], 'rollup', args[13])
  if args[14] ~= '' then redis.call('HSET', t.meta, 'origin', args[14]) end
  if args[15] ~= '' then redis.call('HSET', t.meta, 'agent', args[15]) end
  if args[16] ~= '' then redis.call('HSET', t.meta, 'retention', args[16]) end
  save_branch(t, branch)
  local request = args[3]
  args[3] = ''  -- kept in `meta` instead: this record is never dropped for newer ones
  local done = commit(t, args, now, EVENT.CREATED, args[11], {}, {branch = branch})
  redis.call('HSET', t.meta, 'create', request .. '\n' .. args[4] .. '\n' .. done[2])
  return done
end)

-- ARGV: 1-2.
register('delete', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  if t.holds > 0 then
    for _, text in ipairs(redis.call('HVALS', t.branches)) do
      local held_by = cjson.decode(text).held_by
      if held_by then return {'TREE_HELD', held_by} end
    end
  end
  local created, bytes = unpack(redis.call('HMGET', t.meta, 'created', 'bytes'))
  args[3], args[4] = '', ''
  commit(t, args, now_ms(t), EVENT.DELETED, '', {}, {})
  for _, digest in ipairs(redis.call('SMEMBERS', t.tokenizers)) do
    redis.call('UNLINK', t.prefix .. 'tokens:' .. digest)
  end
  for _, suffix in ipairs(SUFFIXES) do
    if suffix ~= 'events' then redis.call('UNLINK', t[suffix]) end
  end
  redis.call('PEXPIRE', t.events, DELETED_EVENTS_KEPT_MS)
  return {'OK', created, t.next, tonumber(bytes or 0)}
end, {'allow-oom'})

-- ARGV: 1-4. Answers {'OK'} where the request was never seen.
register('replay', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  return replay(t, args) or {'OK'}
end)
