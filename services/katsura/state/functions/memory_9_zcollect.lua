-- Memory trees, part 9: collecting. Reachable is what a branch holds on its path or in its chains, what a reachable step
-- refers to, a summary whose last covered step is reachable, and every step with an effect: what was done outside was
-- done. Whatever else there is loses its content; links stay, so ids, hashes and places are what they were.
-- `gone` HASH names of dropped branches; meta `collected` is the last node that was looked at, 0 between two passes.
-- A pass goes over all nodes. One is due where a branch would go, where one has stopped half-way, and once more when what a
-- dropped branch held has left the newest revisions (meta `garbage_at`, a revision). Who collects by itself claims the tree
-- first: meta `collector` is `<token> <lease end ms> <worker>`.

local ALIVE_LOOKS, DEPENDENTS_LOOKS, HOLDS_PER_CALL, LOOKS_MIN = 2048, 64, 8192, 8

-- Branches on which a worker outside holds a task.
local function leased_branches(t, now)
  local found = {}
  for _, text in ipairs(redis.call('HVALS', t.work)) do
    local item = cjson.decode(text)
    if item.worker ~= '' and item.lease_end_ms > now then found[item.branch] = true end
  end
  return found
end

-- Whether a step waits on an abandoned branch, and on none of `branches`: it is owed, and a fork may still resolve it.
local function owes(t, branches, left)
  for _, id in ipairs(waiting_at(t, link(t, left.head))) do
    if not held(t, branches, link(t, id)) then return true end
  end
  return false
end

-- The branches that stay, and the names of abandoned ones that do not: neither among the newest, nor owed anything, nor
-- worked on. `keep`: abandoned branches, revisions, age in ms (0: none).
local function retire(t, keep)
  local stay, left, gone, now = {}, {}, {}, now_ms(t)
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
  local lasting, worked = {unpack(stay)}, leased_branches(t, now)
  for i, branch in ipairs(left) do
    local old = keep[3] > 0 and branch.left_ms and now - branch.left_ms >= keep[3]
    if i <= keep[1] and not old or worked[branch.name] or owes(t, lasting, branch) then
      stay[#stay + 1] = branch
    else
      gone[#gone + 1] = branch.name
    end
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

-- What stays, as three of ARGV: abandoned branches, revisions, age in ms.
local function kept(args, at) return {tonumber(args[at]), tonumber(args[at + 1]), tonumber(args[at + 2])} end

-- The newest claim of a tree: token, when it ends, worker.
local function collector(t)
  local token, end_ms, worker = string.match(redis.call('HGET', t.meta, 'collector') or '0 0 ', '^(%d+) (%d+) (.*)$')
  return tonumber(token), tonumber(end_ms), worker
end

-- ARGV: what stays, worker, lease ms. Not a commit. {'OK', token}: 0 where nothing is due, or somebody else is at it.
register('claim_collecting', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local stay, gone = retire(t, kept(args, 1))
  local m = redis.call('HMGET', t.meta, 'collected', 'garbage_at')
  if #gone == 0 and (m[1] or '0') == '0' and (not m[2] or t.revision < tonumber(m[2])) then return {'OK', 0} end
  local now, _, end_ms, worker = now_ms(t), collector(t)
  if end_ms > now and worker ~= args[4] then return {'OK', 0} end
  local token = redis.call('HINCRBY', t.meta, 'claims', 1)
  redis.call('HSET', t.meta, 'collector', string.format('%d %d %s', token, now + tonumber(args[5]), args[4]))
  return {'OK', token}
end)

-- ARGV: what stays, most nodes, node to look on after ('': where collecting stopped). {'OK', names of the branches that
-- go (JSON), last node looked at, done (1), id...}
register('collectable', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local keep = kept(args, 1)
  local stay, gone = retire(t, keep)
  local looks = math.min(tonumber(args[4]), math.max(LOOKS_MIN, math.floor(HOLDS_PER_CALL / (#stay + 1))))
  local first = tonumber(args[5] ~= '' and args[5] or redis.call('HGET', t.meta, 'collected') or 0) + 1
  local last, known = math.min(first + looks - 1, t.next), {}
  local answer = {'OK', cjson.encode(gone), last, last >= t.next and 1 or 0}
  for id = first, last do
    local made = tonumber(string.match(redis.call('HGET', t.nodes, id), '^%d+ (%d+)'))
    if made <= t.revision - keep[2] and not is_tombstone(t, id) then
      known.looks = 0
      if not alive(t, stay, id, known) then answer[#answer + 1] = id end
    end
  end
  return answer
end, {'no-writes'})

-- ARGV: 1-4, what stays, last node looked at (0: the pass is done), token of a claim (0: none), then node and body digest
-- ('' but for steps) by turns: those that are still out of reach lose their content.
register('collect', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local keep, token, newest, _, worker = kept(args, 5), tonumber(args[9]), collector(t)
  if token ~= 0 and token ~= newest then return {'LEASE_LOST', 'collect', 'taken', worker} end
  local stay, gone = retire(t, keep)
  redis.call('XTRIM', t.events, 'MINID', string.format('%d-0', math.max(1, t.revision - keep[2] + 1)))
  local m = redis.call('HMGET', t.meta, 'collected', 'garbage_at')
  if (m[1] or '0') == '0' and m[2] and t.revision >= tonumber(m[2]) then redis.call('HDEL', t.meta, 'garbage_at') end
  if #gone > 0 then redis.call('HSET', t.meta, 'garbage_at', t.revision + keep[2] + 1) end
  local ids, known = {}, {}
  for i = 10, #args, 2 do
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
  redis.call('HSET', t.meta, 'collected', args[8])
  if args[8] == '0' and token ~= 0 then redis.call('HDEL', t.meta, 'collector') end
  local answer = {ids = cjson.encode(ids), gone = cjson.encode(gone)}
  if #ids == 0 and #gone == 0 then return {'OK', cjson.encode(answer), 0, 0} end
  return commit(t, args, now_ms(t), EVENT.COLLECTED, '', ids, answer)
end)
