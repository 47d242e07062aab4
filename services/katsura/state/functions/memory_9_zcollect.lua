-- Memory trees, part 9: collecting. Reachable is what a branch holds on its path or in its chains, what a reachable step
-- refers to, a summary whose last covered step is reachable, and every step with an effect: what was done outside was
-- done. Whatever else there is loses its content; links stay, so ids, hashes and places are what they were.
-- `gone` HASH names of dropped branches; meta `collected` is the last node that was looked at.

local ALIVE_LOOKS, DEPENDENTS_LOOKS, HOLDS_PER_CALL, LOOKS_MIN = 2048, 64, 8192, 8

-- The branches that stay, and the names of abandoned ones that do not: all but the newest.
local function retire(t, keep)
  local stay, left, gone = {}, {}, {}
  for _, name in ipairs(redis.call('HKEYS', t.branches)) do
    local branch = load_branch(t, name)
    branch.slots = slot_head(t, branch)
    if branch.state == ABANDONED and not branch.held_by and name ~= t.default then
      left[#left + 1] = branch
    else
      stay[#stay + 1] = branch
    end
  end
  table.sort(left, function(a, b) return a.order > b.order end)
  for i, branch in ipairs(left) do
    if i <= keep then stay[#stay + 1] = branch else gone[#gone + 1] = branch.name end
  end
  table.sort(gone)
  return stay, gone
end

-- Whether somebody can reach a node. What takes too long to tell is reachable.
local function alive(t, stay, id, known)
  if known[id] ~= nil then return known[id] end
  known.looks = (known.looks or 0) + 1
  if known.looks > ALIVE_LOOKS then return true end
  known[id] = false  -- references lead back only: nothing asks for it meanwhile
  local at = link(t, id)
  local yes = held(t, stay, at)
  if not yes and is_summary(t, id) then yes = alive(t, stay, at.b, known) end
  if not yes and at.a == id and is_step(at) then
    local record = string.match(redis.call('HGET', t.nodes, id), '\n(.*)$')
    yes = cjson.decode(string.sub(record, 17)).e ~= nil
  end
  if not yes then
    local found = redis.call('ZRANGEBYLEX', t.dependents, '(' .. place_of(id, 0), '(' .. place_of(id + 1, 0), 'LIMIT', 0,
                             DEPENDENTS_LOOKS + 1)
    yes = #found > DEPENDENTS_LOOKS
    for _, place in ipairs(found) do yes = yes or alive(t, stay, tonumber(string.sub(place, 18)), known) end
  end
  known[id] = yes
  return yes
end

local function is_tombstone(t, id) return string.sub(redis.call('HGET', t.nodes, id), -7) == ',"x":1}' end

-- ARGV: abandoned branches that stay, revisions that stay, most nodes. {'OK', first node looked at, last one, done (1), id...}
register('collectable', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local stay, answer = retire(t, tonumber(args[1])), {}
  local looks = math.min(tonumber(args[3]), math.max(LOOKS_MIN, math.floor(HOLDS_PER_CALL / (#stay + 1))))
  local first = tonumber(redis.call('HGET', t.meta, 'collected') or 0) + 1
  local last, known = math.min(first + looks - 1, t.next), {}
  answer = {'OK', first, last, last >= t.next and 1 or 0}
  for id = first, last do
    local made = tonumber(string.match(redis.call('HGET', t.nodes, id), '^%d+ (%d+)'))
    if made <= t.revision - tonumber(args[2]) and not is_tombstone(t, id) then
      known.looks = 0
      if not alive(t, stay, id, known) then answer[#answer + 1] = id end
    end
  end
  return answer
end, {'no-writes'})

-- ARGV: 1-4, abandoned branches that stay, revisions that stay, last node looked at (0: begin anew), then node and body
-- digest ('' but for steps) by turns: those that are still out of reach lose their content.
register('collect', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local stay, gone = retire(t, tonumber(args[5]))
  redis.call('XTRIM', t.events, 'MINID', string.format('%d-0', math.max(1, t.revision - tonumber(args[6]) + 1)))
  local ids, known = {}, {}
  for i = 8, #args, 2 do
    local id = tonumber(args[i])
    known.looks = 0
    if not alive(t, stay, id, known) and not is_tombstone(t, id) then
      local head, record = string.match(redis.call('HGET', t.nodes, id), '^%d+ %d+ ([^\n]*)\n(.*)$')
      local fields = cjson.decode(string.sub(record, 17))
      erase(t, id)
      if fields.t == 's' and fields.i then redis.call('HDEL', t.steps, head .. ' ' .. fields.i) end
      if args[i + 1] ~= '' then redis.call('HDEL', t.kids, link(t, id).parent .. ':' .. args[i + 1]) end
      ids[#ids + 1] = id
    end
  end
  for _, name in ipairs(gone) do
    redis.call('HDEL', t.branches, name)
    redis.call('HDEL', t.slot_heads, name)
    redis.call('HSET', t.gone, name, 1)
  end
  redis.call('HSET', t.meta, 'collected', args[7])
  local answer = {ids = cjson.encode(ids), gone = cjson.encode(gone)}
  if #ids == 0 and #gone == 0 then return {'OK', cjson.encode(answer), 0, 0} end
  return commit(t, args, now_ms(t), EVENT.COLLECTED, '', ids, answer)
end)
