-- Memory trees, part 6: what a tree holds beside its paths: its own texts, bytes put beside nodes, listing and finding.

-- From the commit that follows on, a tree lives for so many milliseconds; 0: for ever.
local function live_for(t, ttl_ms)
  if ttl_ms == 0 then persist(t) end
  t.ttl_ms = ttl_ms
  redis.call('HSET', t.meta, 'ttl_ms', ttl_ms)
end

-- ARGV: 1-4, goal given (1), goal, pins to add, to remove, labels to set, to remove (JSON), default branch ('': keep),
-- most pins, most labels, retention (JSON, '': keep), time to live in ms ('': keep).
register('update', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local again = replay(t, args)
  if again then return again end
  local m = redis.call('HMGET', t.meta, 'goal', 'pins', 'labels', 'policy', 'created', 'rollup', 'origin', 'agent', 'retention')
  local goal = args[5] == '1' and args[6] or m[1]
  local gone, there, pins = {}, {}, {}
  for _, pin in ipairs(cjson.decode(args[8])) do gone[pin] = true end
  for _, list in ipairs({cjson.decode(m[2]), cjson.decode(args[7])}) do
    for _, pin in ipairs(list) do
      if not gone[pin] and not there[pin] then pins[#pins + 1], there[pin] = pin, true end
    end
  end
  local labels, count = cjson.decode(m[3]), 0
  for key, value in pairs(cjson.decode(args[9])) do labels[key] = value end
  for _, key in ipairs(cjson.decode(args[10])) do labels[key] = nil end
  for _ in pairs(labels) do count = count + 1 end
  if #pins > tonumber(args[12]) then return {'TOO_MANY', 'add_pins', args[12]} end
  if count > tonumber(args[13]) then return {'TOO_MANY', 'set_labels', args[13]} end
  if args[11] ~= '' then
    local branch, unknown = load_branch(t, args[11])
    if not branch then return unknown end
    if branch.state ~= ACTIVE then return not_writable(branch) end
    t.default = args[11]
  end
  local pins_text = #pins > 0 and cjson.encode(pins) or '[]'
  local labels_text = cjson.encode(labels)
  redis.call('HSET', t.meta, 'goal', goal, 'pins', pins_text, 'labels', labels_text, 'default', t.default)
  local retention = args[14] ~= '' and args[14] or m[9] or ''
  if retention ~= '' then redis.call('HSET', t.meta, 'retention', retention) end
  if args[15] ~= '' then live_for(t, tonumber(args[15])) end
  return commit(t, args, now_ms(t), EVENT.UPDATED, '', {},
                {goal = goal, pins = pins_text, labels = labels_text, policy = m[4], default = t.default,
                 next = t.next, branch_count = t.branch_count, created = tonumber(m[5]), rollup = m[6] or '0',
                 stale = redis.call('ZCARD', t.stale_ids), origin = m[7] or '', agent = m[8] or '',
                 retention = retention, ttl_ms = t.ttl_ms})
end)

-- `extras` HASH: `<id>` -> `<count> <bytes>`, `<id>:<k>` -> `<key size> <key><payload>`, `<id>=<key>` -> k.
-- ARGV: 1-2, node, replace (1), most bytes of a node, most entries of a node, then key and payload by turns.
-- {'OK', revision, bytes added, 1 or 0 for each that was written}
register('put_extras', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local id = tonumber(args[3])
  if id == 0 or not link(t, id) then return {'NODE_NOT_FOUND', id} end
  local count, bytes = string.match(redis.call('HGET', t.extras, id) or '0 0', '^(%d+) (%d+)$')
  count, bytes = tonumber(count), tonumber(bytes)
  local writes, answer, new, before = {}, {'OK', t.revision, 0}, {}, bytes
  for i = 7, #args, 2 do
    local key, payload = args[i], args[i + 1]
    local at = new[key] or redis.call('HGET', t.extras, id .. '=' .. key)
    local entry = #key .. ' ' .. key .. payload
    local old = at and (writes[id .. ':' .. at] or redis.call('HGET', t.extras, id .. ':' .. at))
    local write = not old or (args[4] == '1' and old ~= entry)
    answer[#answer + 1] = write and 1 or 0
    if write then
      if not at then
        count = count + 1
        at, new[key] = count, count
        writes[id .. '=' .. key] = count
      end
      bytes = bytes + #entry - (old and #old or 0)
      writes[id .. ':' .. at] = entry
    end
  end
  if bytes > tonumber(args[5]) then return {'TOO_MUCH_ATTACHED', id, args[5]} end
  if count > tonumber(args[6]) then return {'TOO_MANY', 'attachments', args[6]} end
  if not next(writes) then
    redis.call('HINCRBY', t.meta, 'replayed', 1)  -- the barrier after this call also covers what was put before
    return answer
  end
  for field, value in pairs(writes) do redis.call('HSET', t.extras, field, value) end
  redis.call('HSET', t.extras, id, count .. ' ' .. bytes)
  t.bytes = bytes - before
  local branch = string.match(redis.call('HGET', t.nodes, id), '^%d+ %d+ ([^\n]*)\n')
  commit(t, {args[1], args[2], '', ''}, now_ms(t), EVENT.ATTACHED, branch, {id}, {})
  answer[2], answer[3] = t.revision, t.bytes
  return answer
end)

-- ARGV: made before this node (0: all), most nodes, most bytes, birth branch ('': all), most nodes looked at.
-- {'OK', next before node, node...} newest first.
register('list', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local id, most, bytes, looks = tonumber(args[1]), tonumber(args[2]), tonumber(args[3]), tonumber(args[5])
  id = id == 0 and t.next or math.min(id - 1, t.next)
  local answer = {'OK', 0}
  while id > 0 and #answer - 2 < most and looks > 0 do
    looks = looks - 1
    local at = link(t, id)
    local wanted = args[4] == '' or string.match(redis.call('HGET', t.nodes, id), '^%d+ %d+ ([^\n]*)\n') == args[4]
    if wanted then
      local node = whole(t, at)
      bytes = bytes - size_of(node)
      if bytes < 0 and #answer > 2 then break end
      answer[#answer + 1] = node
    end
    id = id - 1
  end
  answer[2] = id > 0 and id + 1 or 0
  return answer
end, {'no-writes'})

-- ARGV: branch ('': all), client step ids. {'OK', client id, branch, node id, ...} in the order asked for.
register('find', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local names = {args[1]}
  if args[1] == '' then
    names = redis.call('HKEYS', t.branches)
    table.sort(names)
  elseif redis.call('HEXISTS', t.branches, args[1]) == 0 then
    return {'BRANCH_NOT_FOUND', args[1]}
  end
  local answer = {'OK'}
  for i = 2, #args do
    for _, name in ipairs(names) do
      local known = redis.call('HGET', t.steps, name .. ' ' .. args[i])
      if known then
        for _, part in ipairs({args[i], name, tonumber(string.match(known, '^%d+'))}) do answer[#answer + 1] = part end
      end
    end
  end
  return answer
end, {'no-writes'})

local function is_summary(t, id) return redis.call('HEXISTS', t.verdicts, id) == 1 end

-- What a node is, by its place: steps have no `b`, and only they have a depth without one; slots have 1 for `a`.
local function kind_of(t, at)
  if is_summary(t, at.id) then return 'summary_head' end
  if at.b == 0 and at.depth > 0 then return 'head' end
  return at.a == 1 and 'slots' or 'hint'
end

-- The branches that were not left behind.
local function kept_branches(t)
  local found = {}
  for _, text in ipairs(redis.call('HVALS', t.branches)) do
    local branch = cjson.decode(text)
    if branch.state ~= ABANDONED then
      branch.slots = slot_head(t, branch)
      found[#found + 1] = branch
    end
  end
  return found
end

-- Whether one of the branches holds the node, on its path or in its chains.
local function held(t, branches, at)
  local head = kind_of(t, at)
  for _, branch in ipairs(branches) do
    local found = climb(t, branch[head], at.depth)
    if head == 'summary_head' then  -- a roll-up is held by whoever holds the last summary it covers
      while found.id ~= 0 and found.id ~= at.id and found.b == at.b do
        found = link(t, tonumber(redis.call('HGET', t.rollups, found.id) or 0))
      end
    else
      while found.id ~= 0 and found.id ~= at.id and found.depth == at.depth do found = link(t, found.parent) end
    end
    if found.id == at.id then return true end
  end
  return false
end

-- Does the record say every word? Records are JSON, and so are the words; the case of ASCII letters does not matter.
local function says(record, args, first)
  local text = string.lower(string.sub(record, string.find(record, '\n', 1, true) + 17))
  if string.sub(text, -7) == ',"x":1}' then return false end
  for i = first, #args do
    if not string.find(text, args[i], 1, true) then return false end
  end
  return true
end

-- ARGV: scope (1 path, 2 branch, 3 tree), branch, before node, most hits, most nodes looked at, most bytes,
-- include abandoned (1), then the words. {'OK', next before node, live and node by turns} newest first.
register('search', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local scope, before, most, looks = tonumber(args[1]), tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  local bytes, answer, kept = tonumber(args[6]), {'OK', 0}, kept_branches(t)
  local id, stop = t.next, 0
  if scope ~= 3 then
    local branch, unknown = load_branch(t, args[2])
    if not branch then return unknown end
    id = branch.head
    if scope == 2 then stop = branch.fork_node end
    if before ~= 0 then
      local at, off_path = on_path(t, branch.head, before)
      if not at then return off_path end
      if at.depth <= link(t, stop).depth then return {'BAD_BOUNDARY', before} end
      id = at.parent
    end
  elseif before ~= 0 then
    id = math.min(before - 1, t.next)
  end
  local last = before
  while id ~= stop and id > 0 and looks > 0 and (#answer - 2) / 2 < most do
    looks = looks - 1
    local at = link(t, id)
    if says(redis.call('HGET', t.nodes, id), args, 8) then
      local live = held(t, kept, at)
      if live or scope ~= 3 or args[7] == '1' then
        local node = whole(t, at)
        bytes = bytes - size_of(node)
        if bytes < 0 and #answer > 2 then break end
        answer[#answer + 1] = live and 1 or 0
        answer[#answer + 1] = node
      end
    end
    last = id
    if scope == 3 then id = id - 1 else id = at.parent end
  end
  answer[2] = id ~= stop and id > 0 and last or 0
  return answer
end, {'no-writes'})
