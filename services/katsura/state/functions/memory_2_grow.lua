-- Memory trees, part 2: Grow.
--
-- The caller plans: it makes records and chained content hashes for the steps that it takes to be new, under the head
-- that it takes to be current. Where the plan does not fit the tree nothing is written and {'REPLAN', ...} says what
-- holds: one more call, made only after a walk onto existing children or a head that the caller had not seen.

local GROW_ARGS, STEP_ARGS, WAITING_MAX = 10, 13, 64
local CHARGES = {'prompt', 'cached', 'completion', 'micros'}

-- client id, body digest, mergeable, tokens, effect, related ids, record ('': planned as existing), hash, blob, references
-- (JSON, '' for none), whether it replaces what it is related to, whether it waits, the step that it resolves (0: none).
local function step_of(args, i, before)
  local at = before + (i - 1) * STEP_ARGS
  return {client = args[at + 1], digest = args[at + 2], mergeable = args[at + 3] == '1', tokens = tonumber(args[at + 4]),
          effect = args[at + 5] == '1', related = args[at + 6], record = args[at + 7], hash = args[at + 8],
          blob = args[at + 9], references = args[at + 10] ~= '' and cjson.decode(args[at + 10]) or nil,
          replaces = args[at + 11] == '1', waits = args[at + 12] == '1', resolves = tonumber(args[at + 13])}
end

-- The steps that wait after the step at a place, oldest first. `waits` HASH holds them as JSON for every step that has an
-- effect, waits or resolves, from the tree's first waiting step on; `a` of a place leads from one of these to the next.
local function waiting_at(t, at)
  if t.first_wait == nil then t.first_wait = tonumber(redis.call('HGET', t.meta, 'first_wait') or 0) end
  local marked = at.a
  while t.first_wait ~= 0 and marked >= t.first_wait do
    local text = redis.call('HGET', t.waits, marked)
    if text then return cjson.decode(text) end
    marked = link(t, link(t, marked).parent).a  -- made by a version of us that knew no waiting
  end
  return {}
end

-- Note who waits after a step that has an effect, waits or resolves.
local function note_waiting(t, place, waits, resolves)
  local left, before = {}, waiting_at(t, link(t, place.parent))
  if waits and t.first_wait == 0 then
    t.first_wait = place.id
    redis.call('HSET', t.meta, 'first_wait', place.id)
  end
  if t.first_wait == 0 then return end
  for _, id in ipairs(before) do
    if id ~= resolves then left[#left + 1] = id end
  end
  if waits then left[#left + 1] = place.id end
  redis.call('HSET', t.waits, place.id, #left > 0 and cjson.encode(left) or '[]')
end

-- nil where the new steps resolve what waits, and not too many wait, else the answer.
local function check_waiting(t, found)
  local asked = false
  for _, i in ipairs(found.fresh) do asked = asked or found.steps[i].waits or found.steps[i].resolves ~= 0 end
  if not asked then return end
  local open, count = {}, 0
  for _, id in ipairs(waiting_at(t, link(t, found.base))) do open[id], count = true, count + 1 end
  for _, i in ipairs(found.fresh) do
    local step = found.steps[i]
    if step.resolves ~= 0 then
      if not open[step.resolves] then return {'NOT_WAITING', step.resolves} end
      open[step.resolves], count = nil, count - 1
    end
    if step.waits then count = count + 1 end
  end
  if count > WAITING_MAX then return {'TOO_MANY', 'steps', WAITING_MAX} end
end

-- Which steps are there already: repeated by client id on this branch, or walked onto as identical children.
local function resolve(t, branch, args, count)
  local found = {ids = {}, merged = {}, fresh = {}, steps = {}, base = branch.head, repeated = 0}
  local walking = args[9] == '1'
  for i = 1, count do
    local step = step_of(args, i, GROW_ARGS)
    found.steps[i] = step
    local known = step.client ~= '' and redis.call('HGET', t.steps, branch.name .. ' ' .. step.client)
    local child = not known and walking and step.mergeable
      and redis.call('HGET', t.kids, found.base .. ':' .. step.digest)
    found.merged[i] = (known or child) and true or false
    if known then
      local id, digest = string.match(known, '^(%d+) (.*)$')
      if digest ~= step.digest then return nil, {'STEP_ID_REUSED', i - 1, id} end
      found.ids[i] = tonumber(id)
      found.repeated = found.repeated + 1
    elseif child then
      found.base = tonumber(child)
      found.ids[i] = found.base
    else
      walking = false
      found.fresh[#found.fresh + 1] = i
    end
    if step.related ~= '' then
      for id in string.gmatch(step.related, '%d+') do
        if not link(t, tonumber(id)) then return nil, {'NODE_NOT_FOUND', id, i - 1} end
      end
    end
    local wrong = step.references and check_references(t, 0, step.references)
    if wrong then return nil, {wrong[1], wrong[2], i - 1} end
  end
  return found
end

local function plan_fits(t, args, found)
  if #found.fresh == 0 then return true end
  if tonumber(args[7]) ~= found.base or args[8] ~= link(t, found.base).hash then return false end
  for i, step in ipairs(found.steps) do
    if (step.record == '') ~= found.merged[i] then return false end
  end
  return true
end

local function append(t, branch, found, now)
  local at = link(t, found.base)
  for _, i in ipairs(found.fresh) do
    local step = found.steps[i]
    t.next = t.next + 1
    local place = child_of(t, t.next, at, {depth = at.depth + 1, tokens = step.tokens, b = 0, hash = step.hash,
                                           a = (step.effect or step.waits or step.resolves ~= 0) and t.next or at.a})
    save_node(t, place, branch.name, step.record, now)
    if place.a == place.id then note_waiting(t, place, step.waits, step.resolves) end
    if step.blob ~= '' then redis.call('HSET', t.blobs, place.id, step.blob) end
    t.bytes = t.bytes + #step.blob
    if step.mergeable then redis.call('HSETNX', t.kids, at.id .. ':' .. step.digest, place.id) end
    if step.references then refer(t, place, step.references) end
    if step.replaces then
      for id in string.gmatch(step.related, '%d+') do doubt(t, tonumber(id), place.id, STALE.REPLACED, true) end
    end
    found.ids[i] = place.id
    at = place
  end
  return at
end

-- Charge new steps to their agents. `charges` JSON: per step null, or agent, prompt, cached and completion tokens, micros.
local function charge(t, found, charges)
  if charges == '' then return end
  local all = cjson.decode(charges)
  for _, i in ipairs(found.fresh) do
    local step, said = found.steps[i], all[i]
    if said ~= cjson.null then
      redis.call('HINCRBY', t.usage, said[1] .. '\nsteps', 1)
      redis.call('HINCRBY', t.usage, said[1] .. '\nbytes', #step.record + #step.blob)
      for k, what in ipairs(CHARGES) do
        if said[k + 1] ~= 0 then redis.call('HINCRBY', t.usage, said[1] .. '\n' .. what, said[k + 1]) end
      end
    end
  end
end

-- ARGV: 1-4, branch, expected head (-1: any), planned base, its content hash, merge, charges ('': none), then 13 per step.
register_write('grow', function(keys, args)
  local t, branch, answer = begin(keys, args)
  if answer then return answer end
  if branch.state ~= ACTIVE then return not_writable(branch) end
  local fenced = guard(t, args, branch)
  if fenced then return fenced end
  local count = (#args - GROW_ARGS) / STEP_ARGS
  local found, wrong = resolve(t, branch, args, count)
  if not found then return wrong end
  local expected = tonumber(args[6])
  if found.repeated < count and expected >= 0 and expected ~= branch.head then
    return {'HEAD_MOVED', branch.head, branch.name}
  end
  if not plan_fits(t, args, found) then
    return {'REPLAN', found.base, link(t, found.base).hash, table.concat(found.fresh, ' '), branch.head}
  end
  local not_waiting = check_waiting(t, found)
  if not_waiting then return not_waiting end
  local now = now_ms(t)
  local answer = {ids = found.ids, merged = found.merged, branch = branch,
                  compress_due = branch.raw_tokens > t.raw_limit}
  if found.repeated == count then
    answer.revision, answer.incarnation, answer.now = t.revision, t.incarnation, t.updated
    local text = cjson.encode(answer)
    redis.call('HINCRBY', t.meta, 'replayed', 1)
    remember(t, args, text)
    return {'OK', text}
  end
  local head = append(t, branch, found, now)
  charge(t, found, args[10])
  for i, step in ipairs(found.steps) do
    if step.client ~= '' then
      redis.call('HSET', t.steps, branch.name .. ' ' .. step.client, found.ids[i] .. ' ' .. step.digest)
    end
  end
  branch.head, branch.depth = head.id, head.depth
  branch.raw_tokens = head.cum - link(t, branch.boundary).cum
  answer.compress_due = branch.raw_tokens > t.raw_limit
  save_branch(t, branch)
  return commit(t, args, now, EVENT.GROWN, branch.name, found.ids, answer)
end)
