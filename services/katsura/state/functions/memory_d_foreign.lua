-- Memory trees, part 13: steps that refer to nodes of other trees. Nobody tells a tree what befell them: upkeep asks after
-- them, and says here what it saw. `looked` HASH `<tree>\n<to>:<from>` (16 digits each) -> marks of that node as it was last
-- seen (JSON; '': not yet since the tree was imported). Meta `foreign` is there where there is one.

local BRANCH_LOOKS, NODES_MIN = 8192, 8

-- ARGV: nodes. {'OK', marks (JSON; '': no such step or summary)...} of the first ones, fewer where there are many branches.
-- What a node says of itself, and what only `crossed` ones are told, is among them, though it is kept nowhere.
register('standing', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local heads, answer = live_heads(t), {'OK'}
  for i = 1, math.min(#args, math.max(NODES_MIN, math.floor(BRANCH_LOOKS / (#heads + 1)))) do
    local at = link(t, tonumber(args[i]))
    local status = at and string.sub(redis.call('HGET', t.verdicts, at.id) or '', 1, 1)
    if not at or not is_step(at) and status == '' then
      answer[i + 1] = ''
    else
      local marks = decoded(t, t.stale, at.id)
      if status == '3' then marks[#marks + 1] = {0, at.id, STALE.FAILED} end
      if is_step(at) and not on_path_of_any(t, heads, at) then marks[#marks + 1] = {0, at.id, STALE.LEFT} end
      answer[i + 1] = #marks > 0 and cjson.encode(marks) or '[]'
    end
  end
  return answer
end, {'no-writes'})

-- ARGV: 1-4, then by fours a field of `looked`, its value as it was read, its new value, and the marks (JSON) that the step
-- gets. Where somebody else has looked meanwhile nothing happens: what Revalidate took away is not marked again.
register('look', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local ids, marked = {}, {}
  for i = 5, #args, 4 do
    local from = tonumber(string.sub(args[i], -16))
    if redis.call('HGET', t.looked, args[i]) == args[i + 1] then
      redis.call('HSET', t.looked, args[i], args[i + 2])
      for _, new in ipairs(cjson.decode(args[i + 3])) do
        if mark(t, from, new) then
          push_mark(t, from, new)
          if not marked[from] then ids[#ids + 1], marked[from] = from, true end
        end
      end
    end
  end
  if #ids == 0 then return {'OK', '{"ids":[]}', 0, 0} end
  return commit(t, args, now_ms(t), EVENT.STALE, '', ids, {ids = ids})
end)
