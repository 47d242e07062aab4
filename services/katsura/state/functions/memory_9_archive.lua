-- Memory trees, part 9: writing trees down and making them again. An import fills the keys of a tree that `open` does
-- not see yet; `restore_end` shows it. One that was left half-way expires.

local IMPORT_KEPT_MS = 600000

-- {'OK', meta, branches, slot heads, roll-ups, usage}: flat lists. What is written down is the tree as of this moment: nodes
-- never change, and later ones are left out.
register('dump_head', function(keys)
  local t, missing = open(keys)
  if not t then return missing end
  return {'OK', redis.call('HGETALL', t.meta), redis.call('HGETALL', t.branches), redis.call('HGETALL', t.slot_heads),
          redis.call('HGETALL', t.rollups), redis.call('HGETALL', t.usage)}
end, {'no-writes'})

-- ARGV: after this node, up to this one, most nodes, most bytes. {'OK', {id, link, node, verdict, blob, '', extras}...}
register('dump_nodes', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local id, last, bytes, answer = tonumber(args[1]) + 1, tonumber(args[2]), tonumber(args[4]), {'OK'}
  while id <= last and #answer <= tonumber(args[3]) do
    local node = whole(t, link(t, id))
    bytes = bytes - size_of(node)
    if bytes < 0 and #answer > 1 then break end
    answer[#answer + 1] = node
    id = id + 1
  end
  return answer
end, {'no-writes'})

-- ARGV: cursor, key ('steps', 'references', 'stale' or 'looked'). {'OK', next cursor, field, value...}
register('dump_fields', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local found = redis.call('HSCAN', t[args[2]], args[1], 'COUNT', 1000)
  return {'OK', found[1], found[2]}
end, {'no-writes'})

local function importing(t, token)
  return redis.call('HGET', t.meta, 'importing') == token
end

local function keep_for_now(t)
  for _, suffix in ipairs(SUFFIXES) do redis.call('PEXPIRE', t[suffix], IMPORT_KEPT_MS) end
end

-- ARGV: token.
register('restore_begin', function(keys, args)
  local t = keys_of(keys[1])
  if redis.call('EXISTS', t.meta, t.cold) > 0 then return {'TREE_EXISTS'} end
  for _, suffix in ipairs(SUFFIXES) do redis.call('UNLINK', t[suffix]) end
  redis.call('HSET', t.meta, 'importing', args[1])
  keep_for_now(t)
  return {'OK'}
end)

-- ARGV: token. An import that failed leaves nothing behind.
register('restore_abort', function(keys, args)
  local t = keys_of(keys[1])
  if not importing(t, args[1]) then return {'TREE_EXISTS'} end
  for _, suffix in ipairs(SUFFIXES) do redis.call('UNLINK', t[suffix]) end
  return {'OK'}
end)

-- ARGV: token, then 15 per node, ids rising: id, parent, depth, tokens, a, b, hash, stored node, verdict, blob,
-- body digest ('' where nothing merges with it), slot key, slot unset (1), segment key, version.
register('restore_nodes', function(keys, args)
  local t, bytes = keys_of(keys[1]), 0
  if not importing(t, args[1]) then return {'TREE_EXISTS'} end
  for i = 2, #args, 15 do
    local id, parent = tonumber(args[i]), link(t, tonumber(args[i + 1]))
    local place = child_of(t, id, parent, {depth = tonumber(args[i + 2]), tokens = tonumber(args[i + 3]),
                                           a = tonumber(args[i + 4]), b = tonumber(args[i + 5]),
                                           hash = args[i + 6]})
    redis.call('HSET', t.links, id, string.format('%d %d %d %d %d %d %d %d %s', place.parent, place.len, place.jump,
      place.depth, place.tokens, place.cum, place.a, place.b, place.hash))
    redis.call('HSET', t.nodes, id, args[i + 7])
    bytes = bytes + #args[i + 7] - string.find(args[i + 7], '\n', 1, true) + #args[i + 9]
    if place.a == id and place.b == 0 then
      local fields = cjson.decode(string.sub(args[i + 7], string.find(args[i + 7], '\n', 1, true) + 17))
      note_waiting(t, place, fields.y ~= nil, fields.z and fields.z[1])
    end
    if args[i + 8] ~= '' then
      redis.call('HSET', t.verdicts, id, args[i + 8])
      for _, part in ipairs(parts_of(t, id)) do redis.call('ZADD', t.covers, 0, place_of(part, id)) end
    end
    if args[i + 9] ~= '' then redis.call('HSET', t.blobs, id, args[i + 9]) end
    if args[i + 10] ~= '' then redis.call('HSETNX', t.kids, parent.id .. ':' .. args[i + 10], id) end
    if args[i + 11] ~= '' then
      local map = slot_map(t, parent.id)
      map[args[i + 11]] = args[i + 12] == '0' and id or -id
      redis.call('HSET', t.slot_maps, id, cjson.encode(map))
    end
    if args[i + 13] ~= '' then redis.call('HSET', t.versions, args[i + 13], args[i + 14]) end
  end
  redis.call('HINCRBY', t.meta, 'bytes', bytes)
  keep_for_now(t)
  return {'OK'}
end)

-- ARGV: token, then key ('steps', 'extras' or 'looked'), field and value by turns.
register('restore_fields', function(keys, args)
  local t = keys_of(keys[1])
  if not importing(t, args[1]) then return {'TREE_EXISTS'} end
  for i = 2, #args, 3 do
    redis.call('HSET', t[args[i]], args[i + 1], args[i + 2])
    local size = args[i] == 'extras' and string.match(args[i + 2], '^%d+ (%d+)$')
    if size then redis.call('HINCRBY', t.meta, 'bytes', size) end
  end
  keep_for_now(t)
  return {'OK'}
end)

-- ARGV: token, then step and references by turns (JSON, as in `refer`).
register('restore_references', function(keys, args)
  local t = keys_of(keys[1])
  if not importing(t, args[1]) then return {'TREE_EXISTS'} end
  for i = 2, #args, 2 do refer(t, link(t, tonumber(args[i])), cjson.decode(args[i + 1]), true) end
  keep_for_now(t)
  return {'OK'}
end)

-- ARGV: token, then node and marks by turns.
register('restore_marks', function(keys, args)
  local t = keys_of(keys[1])
  if not importing(t, args[1]) then return {'TREE_EXISTS'} end
  for i = 2, #args, 2 do
    redis.call('HSET', t.stale, args[i], args[i + 1])
    redis.call('ZADD', t.stale_ids, args[i], args[i])
  end
  keep_for_now(t)
  return {'OK'}
end)

-- Show what was restored. `kept` are fields of `meta` that it goes on with, where an archive does not carry them.
local function restored(keys, args, event, kept)
  local t = keys_of(keys[1])
  for field, value in pairs(cjson.decode(args[3])) do redis.call('HSET', t.meta, field, value) end
  for i, key in ipairs({t.branches, t.slot_heads, t.rollups, t.usage}) do
    for field, value in pairs(cjson.decode(args[i + 3])) do redis.call('HSET', key, field, value) end
  end
  redis.call('HDEL', t.meta, 'importing')
  for _, suffix in ipairs(SUFFIXES) do redis.call('PERSIST', t[suffix]) end
  local now = now_ms(t)
  for field, value in pairs(kept) do redis.call('HSETNX', t.meta, field, value) end
  t = open(keys)
  local done = commit(t, {args[2], '0', '', ''}, now, event, t.default, {}, {})
  return {'OK', done[2], t.next, tonumber(redis.call('HGET', t.meta, 'bytes') or 0)}
end

-- ARGV: token, events kept, meta, branches, slot heads, roll-ups, usage (JSON objects of strings).
register('restore_end', function(keys, args)
  if not importing(keys_of(keys[1]), args[1]) then return {'TREE_EXISTS'} end
  return restored(keys, args, EVENT.CREATED, {create = '\n\n'})
end)
