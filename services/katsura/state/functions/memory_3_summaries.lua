-- Memory trees, part 3: Compress and Maintain.

-- Status and version of what is known about a summary (verdicts: `<status> <version>\n<JSON>`), and the JSON.
local function verdict(t, id)
  local status, version, text = string.match(redis.call('HGET', t.verdicts, id), '^(%d+) (%d+)\n(.*)$')
  return tonumber(status), tonumber(version), text
end

-- A summary may be under many roll-ups, each made on a branch that turned off in the middle of another one. The one that
-- ends with it decides what is shown: `rollups` HASH names it, and for other summaries one that covers them. `covers` ZSET
-- holds every `<summary>:<roll-up>`, but for those made by a version of us that knew only `rollups`.

-- Every roll-up over a summary, as they were made.
local function roll_ups_over(t, id)
  local named = tonumber(redis.call('HGET', t.rollups, id) or 0)
  local found = named ~= 0 and {named} or {}
  for _, place in ipairs(redis.call('ZRANGEBYLEX', t.covers, '(' .. place_of(id, 0), '(' .. place_of(id + 1, 0))) do
    local over = tonumber(string.sub(place, 18))
    if over ~= named then found[#found + 1] = over end
  end
  table.sort(found)
  return found
end

-- Take down a roll-up over its parts, oldest first. A version of us that knows only `rollups` goes on to find a VALID one.
local function put_over(t, parts, id)
  for i, part in ipairs(parts) do
    local named = tonumber(redis.call('HGET', t.rollups, part) or 0)
    if named ~= 0 then redis.call('ZADD', t.covers, 0, place_of(part, named)) end
    redis.call('ZADD', t.covers, 0, place_of(part, id))
    if i == #parts or named == 0 or verdict(t, named) ~= VALID then redis.call('HSET', t.rollups, part, id) end
  end
end

-- A summary that fails takes the roll-ups over it along; their ids are answered.
local function save_verdict(t, id, status, version, text)
  redis.call('HSET', t.verdicts, id, string.format('%d %d\n', status, version) .. text)
  if status ~= FAILED then return {} end
  doubt(t, id, 0, STALE.FAILED, false)
  local failed, under, at, met = {}, {id}, 1, {}
  while under[at] do
    for _, over in ipairs(roll_ups_over(t, under[at])) do
      local was, seen = verdict(t, over)
      if was ~= FAILED then
        local note = string.format('[3,2,3,"summary %d, which it covers, failed",0,[],[]]', under[at])
        redis.call('HSET', t.verdicts, over, string.format('%d %d\n', FAILED, seen + 1) .. note)
        failed[#failed + 1] = over
        doubt(t, over, 0, STALE.FAILED, false)
      end
      if not met[over] then met[over], under[#under + 1] = true, over end
    end
    at = at + 1
  end
  return failed
end

-- The roll-up that ends with the summary at a place, or nil.
local function ending(t, at)
  local over = redis.call('HGET', t.rollups, at.id)
  local place = over and link(t, tonumber(over))
  return place and place.b == at.b and place or nil
end

-- The highest VALID roll-up that ends with the summary at a place, or the place itself. It belongs to the summaries, so
-- every branch that has them all shares it, and one that was revised into its middle has them one by one again.
local function rolled(t, at)
  local over = ending(t, at)
  while over and verdict(t, over.id) == VALID do at, over = over, ending(t, over) end
  return at
end

-- The last summary of the branch that did not fail: what a new one continues.
local function standing_summary(t, branch)
  local at = link(t, branch.summary_head)
  while at.id ~= 0 and verdict(t, at.id) == FAILED do at = link(t, at.parent) end
  return at
end

local function adopt(t, branch, place)
  branch.summary_head, branch.boundary = place.id, place.b
  branch.raw_tokens = link(t, branch.head).cum - link(t, place.b).cum
  save_branch(t, branch)
end

local function segment_key(parent, base, last)
  return string.format('%d:%d:%d', parent, base, last)
end

-- ARGV: branch, expected head (-1: any), last covered (0: the head).
-- {'OK', branch JSON, chain parent, its hash, its record, its verdict JSON, base, last, count, versions made, tokens}
register('cover', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local branch, unknown = load_branch(t, args[1])
  if not branch then return unknown end
  if branch.state ~= ACTIVE then return not_writable(branch) end
  local expected, last = tonumber(args[2]), tonumber(args[3])
  if expected >= 0 and expected ~= branch.head then return {'HEAD_MOVED', branch.head, branch.name} end
  local at, off_path = on_path(t, branch.head, last == 0 and branch.head or last)
  if not at then return off_path end
  local parent = standing_summary(t, branch)
  local base = link(t, parent.b)
  if at.depth <= base.depth then return {'BAD_BOUNDARY', at.id} end
  local record, judgement = '', ''
  if parent.id ~= 0 then
    local _, _, text = verdict(t, parent.id)
    record, judgement = redis.call('HGET', t.nodes, parent.id), text
  end
  local made = redis.call('HGET', t.versions, segment_key(parent.id, base.id, at.id)) or 0
  return {'OK', cjson.encode(branch), parent.id, parent.hash, record, judgement, base.id, at.id, at.depth - base.depth,
          tonumber(made), at.cum - base.cum}
end, {'no-writes'})

-- ARGV: 1-4, branch, expected head (-1: any), summary head seen, chain parent, base, last, versions seen, status,
-- record, hash, body tokens, judgement JSON, a worker outside is to judge it (1).
local function summarise(keys, args)
  local t, branch, answer = begin(keys, args)
  if answer then return answer end
  if branch.state ~= ACTIVE then return not_writable(branch) end
  local expected, parent, base, last = tonumber(args[6]), tonumber(args[8]), tonumber(args[9]), tonumber(args[10])
  local moved = expected >= 0 and expected ~= branch.head
  if moved or branch.summary_head ~= tonumber(args[7]) or not on_path(t, branch.head, last) then
    return {'HEAD_MOVED', branch.head, branch.name}
  end
  local segment, versions, status = segment_key(parent, base, last), tonumber(args[11]), tonumber(args[12])
  if tonumber(redis.call('HGET', t.versions, segment) or 0) ~= versions then
    return {'HEAD_MOVED', branch.head, branch.name}
  end
  local now = now_ms(t)
  t.next = t.next + 1
  local place = child_of(t, t.next, link(t, parent), {depth = link(t, last).depth, tokens = tonumber(args[15]),
                                                      a = base, b = last, hash = args[14]})
  save_node(t, place, branch.name, args[13], now)
  save_verdict(t, place.id, status, 1, args[16])
  redis.call('HSET', t.versions, segment, versions + 1)
  if status ~= FAILED then adopt(t, branch, place) end
  local asked = status == PENDING and args[17] == '1'
  if asked then put_work(t, VALIDATE, branch.name, place.id, '', now) end
  return commit(t, args, now, EVENT.COMPRESSED, branch.name, {place.id},
                {ids = {place.id}, branch = branch, judgement = args[16], version = 1, asked = asked})
end
register('summarise', summarise)

-- The summaries that a roll-up covers; none for one that covers steps.
local function parts_of(t, id)
  local record = string.match(redis.call('HGET', t.nodes, id), '\n(.*)$')
  return cjson.decode(string.sub(record, 17)).s or {}
end

-- Let a roll-up that was found VALID stand over its parts; or the part because of which it cannot: one that is not VALID,
-- or the last one, where another VALID roll-up ends.
local function stand(t, id)
  local parts = parts_of(t, id)
  for i, part in ipairs(parts) do
    local other = i == #parts and ending(t, link(t, part))
    if verdict(t, part) ~= VALID or other and other.id ~= id and verdict(t, other.id) == VALID then return part end
  end
  put_over(t, parts, id)
end

-- ARGV: 1-4, branch, summary, version seen, status, judgement JSON.
local function judge(keys, args)
  local t, branch, answer = begin(keys, args)
  if answer then return answer end
  local id, version, status = tonumber(args[6]), tonumber(args[7]), tonumber(args[8])
  if redis.call('HEXISTS', t.verdicts, id) == 0 then return {'NODE_NOT_FOUND', id} end
  local _, seen = verdict(t, id)
  if seen ~= version then return {'HEAD_MOVED', branch.head, branch.name} end
  local cannot = status == VALID and stand(t, id)
  if cannot then return {'BAD_BOUNDARY', cannot} end
  local changed = save_verdict(t, id, status, version + 1, args[9])
  table.insert(changed, 1, id)
  local place = link(t, id)
  if status == VALID and branch.state == ACTIVE and id ~= branch.summary_head and standing_summary(t, branch).id == place.parent
    and on_path(t, branch.head, place.b) then
    adopt(t, branch, place)
  end
  return commit(t, args, now_ms(t), EVENT.MAINTAINED, branch.name, changed,
                {ids = {id}, branch = branch, judgement = args[9], version = tonumber(args[7]) + 1})
end
register('judge', judge)

-- ARGV: 1-4, branch, status, record, hash, tokens, judgement JSON, then the summaries, oldest first.
register('roll_up', function(keys, args)
  local t, branch, answer = begin(keys, args)
  if answer then return answer end
  local status, children, parts = tonumber(args[6]), {}, {}
  for i = 11, #args do
    local id = tonumber(args[i])
    if redis.call('HEXISTS', t.verdicts, id) == 0 then return {'NODE_NOT_FOUND', id, i - 11} end
    local at, before = link(t, id), children[#children]
    local follows = not before or rolled(t, link(t, at.parent)).id == before.id
    if verdict(t, id) ~= VALID or not follows or rolled(t, at).id ~= id then return {'BAD_BOUNDARY', id} end
    children[#children + 1] = at
    parts[#parts + 1] = id
  end
  local now, first, last = now_ms(t), children[1], children[#children]
  t.next = t.next + 1
  local place = child_of(t, t.next, link(t, first.parent), {depth = last.depth, tokens = tonumber(args[9]), a = first.a,
                                                            b = last.b, hash = args[8]})
  save_node(t, place, branch.name, args[7], now)
  save_verdict(t, place.id, status, 1, args[10])
  put_over(t, parts, place.id)
  return commit(t, args, now, EVENT.COMPRESSED, branch.name, {place.id},
                {ids = {place.id}, branch = branch, judgement = args[10], version = 1})
end)
