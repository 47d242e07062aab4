-- Memory trees, part 7: Redact. Content and salt go, hash and shape stay; what may quote a step goes with it.

local NO_SALT = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
local REDACTED_VERDICT = '[3,2,3,"its content was redacted",0,[],[]]'

-- Summaries whose cover holds a step: between the step before the cover and its last one, on the same path.
local function summaries_over(t, steps)
  local found = {}
  for _, name in ipairs(redis.call('HKEYS', t.verdicts)) do
    local id = tonumber(name)
    local summary = link(t, id)
    for _, step in ipairs(steps) do
      if step.depth <= summary.depth and step.depth > link(t, summary.a).depth
        and climb(t, summary.b, step.depth).id == step.id then
        found[#found + 1] = id
        break
      end
    end
  end
  return found
end

-- Hints that quote a step, as the first one of what was abandoned or as an effect. Every hint is in the chain of a branch.
local function hints_over(t, steps)
  local seen, found = {}, {}
  for _, text in ipairs(redis.call('HVALS', t.branches)) do
    local at = link(t, cjson.decode(text).hint)
    while at.id ~= 0 and not seen[at.id] do
      seen[at.id] = true
      local fields = cjson.decode(string.match(redis.call('HGET', t.nodes, at.id), '\n.*$'):sub(18))
      local quoted = {[climb(t, fields.n[1], at.depth + 1).id] = true}
      for _, effect in ipairs(fields.e or {}) do quoted[effect[1]] = true end
      for _, step in ipairs(steps) do
        if quoted[step.id] then
          found[#found + 1] = at.id
          break
        end
      end
      at = link(t, at.parent)
    end
  end
  return found
end

-- What is left of a record: role and kind of a step, cover of a summary, place of a hint.
local function tombstone(fields)
  if fields.t == 'c' then
    local parts = fields.s and '"s":' .. cjson.encode(fields.s) .. ',' or ''
    return string.format('{"c":"[redacted]","h":"%s","k":[%d,%d],"l":%d,"m":"%s",%s"t":"c","v":%d,"w":[%d,%d,%d],"x":1}',
      fields.h, fields.k[1], fields.k[2], fields.l, fields.m, parts, fields.v, fields.w[1], fields.w[2], fields.w[3])
  elseif fields.t == 'h' then
    return string.format('{"b":"%s","c":"[redacted]","f":"[redacted]","n":[%d,%d,%d],"t":"h","x":1}',
      fields.b, fields.n[1], fields.n[2], fields.n[3])
  end
  if fields.t == 'v' then
    return string.format('{"c":"[redacted]","k":%s,"l":%d,"n":[%d,%d],"t":"v","x":1}',
      cjson.encode(fields.k), fields.l, fields.n[1], fields.n[2])
  end
  local waits = fields.y and string.format('"y":[%d,"[redacted]"],', fields.y[1]) or ''
  local resolves = fields.z and string.format('"z":[%d,%d],', fields.z[1], fields.z[2]) or ''
  return string.format('{"c":"[redacted]","k":%d,"r":"%s","t":"s",%s%s"x":1}', fields.k or 0, fields.r, waits, resolves)
end

local function erase(t, id)
  local head, record = string.match(redis.call('HGET', t.nodes, id), '^([^\n]*\n)(.*)$')
  local fields = cjson.decode(string.sub(record, 17))
  local left = NO_SALT .. tombstone(fields)
  redis.call('HSET', t.nodes, id, head .. left)
  t.bytes = t.bytes + #left - #record - redis.call('HSTRLEN', t.blobs, id)
  t.bytes = t.bytes - tonumber(string.match(redis.call('HGET', t.extras, id) or '0 0', '%d+$'))
  redis.call('HDEL', t.blobs, id)
  for _, digest in ipairs(redis.call('SMEMBERS', t.tokenizers)) do
    redis.call('HDEL', t.prefix .. 'tokens:' .. digest, id)
  end
  for k, entry in ipairs(extras(t, id)) do
    local size, start = string.match(entry, '^(%d+) ()')
    redis.call('HDEL', t.extras, id .. ':' .. k, id .. '=' .. string.sub(entry, start, start + tonumber(size) - 1))
  end
  redis.call('HDEL', t.extras, id)
  if fields.t == 'c' then
    local _, version = verdict(t, id)
    save_verdict(t, id, FAILED, version + 1, REDACTED_VERDICT)
  else
    doubt(t, id, 0, STALE.REDACTED, fields.t == 's')
  end
  if fields.t == 's' and fields.i then
    local branch = string.match(head, '^%d+ %d+ ([^\n]*)\n')
    redis.call('HSET', t.steps, branch .. ' ' .. fields.i, id .. ' -')
  end
end

-- Answers kept for repeated requests quote the steps whose effects a Revise left standing.
local function scrub_replays(t, gone)
  local all = redis.call('HGETALL', t.replays)
  for i = 1, #all, 2 do
    local digest, text = string.sub(all[i + 1], 1, 32), string.sub(all[i + 1], 33)
    local answer = string.find(text, '"effects"', 1, true) and cjson.decode(text)
    local effects = answer and cjson.decode(answer.effects) or {}
    local changed = false
    for _, effect in ipairs(effects) do
      if gone[effect[1]] then effect[3], effect[4], changed = '', '[redacted]', true end
    end
    if changed then
      answer.effects = cjson.encode(effects)
      redis.call('HSET', t.replays, all[i], digest .. cjson.encode(answer))
    end
  end
end

-- ARGV: 1-4, then node and body digest ('' but for steps) by turns.
register('redact', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local again = replay(t, args)
  if again then return again end
  local gone, ids, steps = {}, {}, {}
  for i = 5, #args, 2 do
    local id = tonumber(args[i])
    local at = link(t, id)
    if not at or id == 0 then return {'NODE_NOT_FOUND', id, (i - 5) / 2} end
    if kind_of(t, at) == 'head' then steps[#steps + 1] = at end
    if not gone[id] then gone[id], ids[#ids + 1] = true, id end
  end
  for _, list in ipairs({summaries_over(t, steps), hints_over(t, steps)}) do
    table.sort(list)
    for _, id in ipairs(list) do
      if not gone[id] then gone[id], ids[#ids + 1] = true, id end
    end
  end
  local at = 1
  while ids[at] do  -- a roll-up may quote what it covers
    for _, over in ipairs(roll_ups_over(t, ids[at])) do
      if not gone[over] then gone[over], ids[#ids + 1] = true, over end
    end
    at = at + 1
  end
  for i = 5, #args, 2 do
    if args[i + 1] ~= '' then redis.call('HDEL', t.kids, link(t, tonumber(args[i])).parent .. ':' .. args[i + 1]) end
  end
  for _, id in ipairs(ids) do erase(t, id) end
  scrub_replays(t, gone)
  return commit(t, args, now_ms(t), EVENT.REDACTED, '', ids, {ids = ids})
end)
