-- Memory trees, part 9: adding references to steps, taking them away, and saying what no longer holds.

local function birth_branch(t, id) return string.match(redis.call('HGET', t.nodes, id), '^%d+ %d+ ([^\n]*)\n') end

-- The tree and the place of the step ARGV[5], or nil, nil and the answer to give.
local function begin_at_step(keys, args)
  local t, missing = open(keys)
  if not t then return nil, nil, missing end
  local again = replay(t, args)
  if again then return nil, nil, again end
  local at = link(t, tonumber(args[5]))
  if not at or at.id == 0 then return nil, nil, {'NODE_NOT_FOUND', args[5]} end
  if not is_step(at) then return nil, nil, {'BAD_REFERENCE', args[5]} end
  return t, at
end

-- ARGV: 1-4, step, references (JSON, as in `refer`), most of a step.
register('refer', function(keys, args)
  local t, at, answer = begin_at_step(keys, args)
  if answer then return answer end
  local there, new, found = {}, {}, decoded(t, t.references, at.id)
  for _, reference in ipairs(found) do there[table.concat(reference, ' ', 1, 2) .. reference[4]] = true end
  for _, reference in ipairs(cjson.decode(args[6])) do
    local name = table.concat(reference, ' ', 1, 2) .. reference[4]
    if not there[name] then new[#new + 1], there[name] = reference, true end
  end
  local wrong = check_references(t, at.id, new)
  if wrong then return wrong end
  if #found + #new > tonumber(args[7]) then return {'TOO_MANY', 'references', args[7]} end
  if #new > 0 then refer(t, at, new) end
  return commit(t, args, now_ms(t), EVENT.REFERRED, birth_branch(t, at.id), {at.id}, {ids = {at.id}})
end)

-- ARGV: 1-4, step, then the nodes that it shall not refer to.
register('unrefer', function(keys, args)
  local t, at, answer = begin_at_step(keys, args)
  if answer then return answer end
  local gone, kept, still = {}, {}, {}
  for i = 6, #args do gone[tonumber(args[i])] = true end
  for _, reference in ipairs(decoded(t, t.references, at.id)) do
    if reference[3] == 1 or reference[4] ~= '' or not gone[reference[1]] then
      kept[#kept + 1] = reference
      if reference[4] == '' then still[reference[1]] = true end
    end
  end
  for id in pairs(gone) do
    if not still[id] then redis.call('ZREM', t.dependents, place_of(id, at.id)) end
  end
  if #kept > 0 then
    redis.call('HSET', t.references, at.id, cjson.encode(kept))
  else
    redis.call('HDEL', t.references, at.id)
  end
  return commit(t, args, now_ms(t), EVENT.REFERRED, birth_branch(t, at.id), {at.id}, {ids = {at.id}})
end)

-- ARGV: 1-4, whether they hold after all (1), then steps and summaries.
register('invalidate', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local again = replay(t, args)
  if again then return again end
  local ids = {}
  for i = 6, #args do
    local at = link(t, tonumber(args[i]))
    if not at or at.id == 0 then return {'NODE_NOT_FOUND', args[i], i - 6} end
    if not is_step(at) and redis.call('HEXISTS', t.verdicts, at.id) == 0 then return {'BAD_REFERENCE', at.id} end
    ids[#ids + 1] = at.id
  end
  for _, id in ipairs(ids) do
    if args[5] == '1' then
      redis.call('HDEL', t.stale, id)
      redis.call('ZREM', t.stale_ids, id)
    else
      doubt(t, id, 0, STALE.INVALIDATED, true)
    end
  end
  return commit(t, args, now_ms(t), EVENT.INVALIDATED, '', ids, {ids = ids})
end)

-- Not a commit. {'OK', whether nothing is left (1)}
register('settle', function(keys)
  local t, missing = open(keys)
  if not t then return missing end
  local done = settle(t, SETTLE_LOOKS)
  expire(t)
  return {'OK', done and 1 or 0}
end)

-- ARGV: node, after this step, most steps, most bytes. {'OK', next after (0: the end), node...} oldest first.
register('dependents', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local id, after, most, bytes = tonumber(args[1]), tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  if id == 0 or not link(t, id) then return {'NODE_NOT_FOUND', id} end
  local answer, last = {'OK', 0}, after
  for _, place in ipairs(redis.call('ZRANGEBYLEX', t.dependents, '(' .. place_of(id, after), '(' .. place_of(id + 1, 0),
                                    'LIMIT', 0, most + 1)) do
    local node = whole(t, link(t, tonumber(string.sub(place, 18))))
    bytes = bytes - size_of(node)
    if #answer - 2 == most or bytes < 0 and #answer > 2 then
      answer[2] = last
      break
    end
    answer[#answer + 1], last = node, node[1]
  end
  return answer
end, {'no-writes'})
