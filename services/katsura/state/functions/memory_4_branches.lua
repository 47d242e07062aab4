-- Memory trees, part 4: Revise, Fork, and the states of branches. Revise and Fork cost the same at any depth: a branch is
-- heads, the rest is shared.

local function branch_at(t, name, source, at, now)
  local summary = climb(t, source.summary_head, at.depth)
  t.branch_count = t.branch_count + 1
  redis.call('HSET', t.slot_heads, name, climb(t, slot_head(t, source), at.depth).id)
  return {name = name, state = ACTIVE, head = at.id, summary_head = summary.id, boundary = summary.b, fork_node = at.id,
          parent_branch = source.name, depth = at.depth, raw_tokens = at.cum - link(t, summary.b).cum,
          hint = climb(t, source.hint, at.depth).id, cut = math.min(source.cut, at.depth), create_ms = now, order = t.branch_count}
end

-- The name asked for if it is free, or the first free one of `<prefix><number>`; else nil and the answer.
local function free_name(t, asked)
  if asked ~= '' then
    if redis.call('HEXISTS', t.branches, asked) == 1 or redis.call('HEXISTS', t.gone, asked) == 1 then
      return nil, {'BRANCH_EXISTS', asked}
    end
    return asked
  end
  local number = t.branch_count + 1
  while redis.call('HEXISTS', t.branches, 'b' .. number) + redis.call('HEXISTS', t.gone, 'b' .. number) > 0 do number = number + 1 end
  return 'b' .. number
end

-- `answer`, and behind it id and record of each step below `depth` of a branch that has an effect, and of each hint there,
-- or made on the branch `maker`.
local function with_standing(t, branch, depth, maker, answer)
  local effect = link(t, link(t, branch.head).a)
  while effect.depth > depth do
    answer[#answer + 1] = effect.id
    answer[#answer + 1] = redis.call('HGET', t.nodes, effect.id)
    effect = link(t, link(t, effect.parent).a)
  end
  local left = link(t, branch.hint)
  while left.id ~= 0 do
    local record = redis.call('HGET', t.nodes, left.id)
    if left.depth <= depth and string.match(record, '^%d+ %d+ ([^\n]*)\n') ~= maker then break end
    answer[#answer + 1] = left.id
    answer[#answer + 1] = record
    left = link(t, left.parent)
  end
  return answer
end

-- ARGV: branch, expected head (-1: any), restore after.
-- {'OK', branch JSON, first abandoned step, its record, hint kept, its hash, then id and record of each standing effect, and of
-- each hint that is left behind: it may tell of more}
register('retreat', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local branch, unknown = load_branch(t, args[1])
  if not branch then return unknown end
  if branch.state ~= ACTIVE then return not_writable(branch) end
  local expected, restore = tonumber(args[2]), tonumber(args[3])
  if expected >= 0 and expected ~= branch.head then return {'HEAD_MOVED', branch.head, branch.name} end
  local at, off_path = on_path(t, branch.head, restore)
  if not at then return off_path end
  if restore == branch.head then return {'BAD_BOUNDARY', restore} end
  local first = climb(t, branch.head, at.depth + 1)
  local hint = climb(t, branch.hint, at.depth)
  local answer = {'OK', cjson.encode(branch), first.id, redis.call('HGET', t.nodes, first.id), hint.id, hint.hash}
  return with_standing(t, branch, at.depth, nil, answer)
end, {'no-writes'})

-- ARGV: 1-4, branch, head seen, restore after, new branch, keep the default branch (1: move it along), hint kept,
-- hint record, hash, tokens, ids of the standing effects. Behind a new commit's answer stand the hint's link and record.
register_write('revise', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local again = replay(t, args)
  if again then return again end
  local old, unknown = load_branch(t, args[5])
  if not old then return unknown end
  if old.state ~= ACTIVE then return not_writable(old) end
  local fenced = guard(t, args, old)
  if fenced then return fenced end
  if old.head ~= tonumber(args[6]) then return {'HEAD_MOVED', old.head, old.name} end
  local name, taken = free_name(t, args[8])
  if not name then return taken end
  local now, at = now_ms(t), link(t, tonumber(args[7]))
  local new = branch_at(t, name, old, at, now)
  t.next = t.next + 1
  local place = child_of(t, t.next, link(t, tonumber(args[10])), {depth = at.depth, tokens = tonumber(args[13]), a = 0,
                                                                  b = at.id, hash = args[12]})
  local raw, stored = save_node(t, place, name, args[11], now)
  new.hint, old.state, old.left_ms = place.id, ABANDONED, now
  new.lease_token, new.lease_holder, new.lease_end_ms = old.lease_token, old.lease_holder, old.lease_end_ms
  save_branch(t, new)
  save_branch(t, old)
  doubt_left(t, old.head, at.depth)
  redis.call('HSET', t.meta, 'branch_count', t.branch_count)
  if args[9] == '1' and t.default == old.name then redis.call('HSET', t.meta, 'default', name) end
  local done = commit(t, args, now, EVENT.REVISED, name, {place.id},
                      {ids = {place.id}, branch = new, abandoned = old, effects = args[14]})
  done[5], done[6] = raw, stored
  return done
end)

-- ARGV: 1-4, branch, at node (0: the head, -1: the empty root), new branch, agent, tree that the branch keeps the place for
-- ('': none).
register('fork', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local again = replay(t, args)
  if again then return again end
  local source, unknown = load_branch(t, args[5])
  if not source then return unknown end
  local id = tonumber(args[6])
  if id == 0 then id = source.head elseif id == -1 then id = 0 end
  local at, off_path = on_path(t, source.head, id)
  if not at then return off_path end
  local name, taken = free_name(t, args[7])
  if not name then return taken end
  local now = now_ms(t)
  local branch = branch_at(t, name, source, at, now)
  if args[8] ~= '' then branch.agent_id = args[8] end
  if args[9] ~= '' then
    branch.state, branch.held_by = ABANDONED, args[9]
    t.holds = redis.call('HINCRBY', t.meta, 'holds', 1)
    persist(t)
  end
  save_branch(t, branch)
  redis.call('HSET', t.meta, 'branch_count', t.branch_count)
  return commit(t, args, now, EVENT.FORKED, name, {}, {branch = branch})
end)

-- ARGV: 1-4, branch that keeps a place.
register('release', function(keys, args)
  local t, branch, answer = begin(keys, args)
  if answer then return answer end
  if not branch.held_by then return {'BRANCH_NOT_FOUND', branch.name} end
  redis.call('HDEL', t.branches, branch.name)
  redis.call('HDEL', t.slot_heads, branch.name)
  redis.call('HSET', t.meta, 'garbage_at', t.revision + 1)  -- memory_9_zcollect.lua
  t.holds = redis.call('HINCRBY', t.meta, 'holds', -1)
  return commit(t, args, now_ms(t), EVENT.RELEASED, branch.name, {}, {})
end)

-- Let a branch be in a state from now on. Whoever holds it lets go where it stops taking writes.
local function enter(branch, state, now)
  if state == branch.state then return end
  if state ~= ACTIVE and branch.lease_token then branch.lease_holder, branch.lease_end_ms = '', 0 end
  branch.state, branch.left_ms = state, state == ABANDONED and now or nil
end

-- ARGV: 1-4, branch, expected head (-1: any), state (0: as it is), label given (1), label, note given (1), note, only tell
-- what would be (1). The answer's `standing`: steps with an effect, and hints, that an abandoned branch takes along.
register_write('update_branch', function(keys, args)
  local t, branch, wrong = begin(keys, args)
  if wrong then return wrong end
  if branch.held_by then return not_writable(branch) end
  local fenced = guard(t, args, branch)
  if fenced then return fenced end
  local expected, state, now, was = tonumber(args[6]), tonumber(args[7]), now_ms(t), branch.state
  if expected >= 0 and expected ~= branch.head then return {'HEAD_MOVED', branch.head, branch.name} end
  if state ~= 0 then enter(branch, state, now) end
  if args[8] == '1' then branch.label = args[9] end
  if args[10] == '1' then branch.note = args[11] end
  local effects, standing = {}, {}
  if branch.state == ABANDONED then
    effects = with_standing(t, branch, link(t, branch.fork_node).depth, branch.name, effects)
  end
  for i = 1, #effects, 2 do standing[#standing + 1] = effects[i] end
  local answer = {branch = branch, standing = standing}
  if args[12] == '1' then
    answer.revision, answer.incarnation = t.revision, t.incarnation
    return {'OK', cjson.encode(answer)}
  end
  save_branch(t, branch)
  if branch.state == ABANDONED and was ~= ABANDONED then doubt_left(t, branch.head, 0) end
  return commit(t, args, now, EVENT.BRANCH_UPDATED, branch.name, {}, answer)
end)

-- ARGV: steps (0: none). {'OK', tokens of the path up to each}
register('path_tokens', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local answer = {'OK'}
  for i, id in ipairs(args) do
    local at = link(t, tonumber(id))
    if not at then return {'NODE_NOT_FOUND', id} end
    answer[i + 1] = at.cum
  end
  return answer
end, {'no-writes'})
