-- Memory trees, part 9: Diff and Merge.

-- The last node that two paths share. Jumps depend on `len` alone, so two nodes of one `len` can jump together.
local function common(t, a, b)
  while a.id ~= b.id do
    local ja, jb = link(t, a.jump), link(t, b.jump)
    if a.len > b.len then
      a = ja.len >= b.len and ja or link(t, a.parent)
    elseif b.len > a.len then
      b = jb.len >= a.len and jb or link(t, b.parent)
    elseif ja.id ~= jb.id then
      a, b = ja, jb
    else
      a, b = link(t, a.parent), link(t, b.parent)
    end
  end
  return a
end

-- ARGV: one branch, the other. {'OK', branch JSON, other JSON, common node, its depth, slot head there, head's hash}
register('common', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  local branch, unknown = load_branch(t, args[1])
  if not branch then return unknown end
  local other, unknown_other = load_branch(t, args[2])
  if not other then return unknown_other end
  local at = common(t, link(t, branch.head), link(t, other.head))
  local slots = common(t, link(t, slot_head(t, branch)), link(t, slot_head(t, other)))
  return {'OK', cjson.encode(branch), cjson.encode(other), at.id, at.depth, slots.id, link(t, branch.head).hash}
end, {'no-writes'})

-- ARGV: 1-4, branch, head seen, slot head seen, source, its head seen, its slot head seen, most keys, steps, keys in
-- conflict (JSON), common node, the source is done and closes (1), then 13 per step (as in Grow) and 5 per slot.
register_write('merge', function(keys, args)
  local t, branch, answer = begin(keys, args)
  if answer then return answer end
  local source, unknown_source = load_branch(t, args[8])
  if not source then return unknown_source end
  if branch.state ~= ACTIVE then return not_writable(branch) end
  local fenced = guard(t, args, branch)
  if fenced then return fenced end
  local closes = args[15] == '1'
  if closes then
    if source.held_by then return not_writable(source) end
    local held = guard(t, {}, source)
    if held then return held end
  end
  local slots = slot_head(t, branch)
  if branch.head ~= tonumber(args[6]) or slots ~= tonumber(args[7]) then return {'HEAD_MOVED', branch.head, branch.name} end
  if source.head ~= tonumber(args[9]) or slot_head(t, source) ~= tonumber(args[10]) then
    return {'HEAD_MOVED', source.head, source.name}
  end
  local now, count, before = now_ms(t), tonumber(args[12]), 15
  local first = before + count * STEP_ARGS + 1
  if not slots_fit(t, slots, args, first, tonumber(args[11])) then return {'TOO_MANY', 'writes', args[11]} end
  local found = {ids = {}, fresh = {}, steps = {}, base = branch.head}
  for i = 1, count do
    found.steps[i], found.fresh[i] = step_of(args, i, before), i
  end
  local head = append(t, branch, found, now)  -- none: the head itself
  branch.head, branch.depth = head.id, head.depth
  branch.raw_tokens = head.cum - link(t, branch.boundary).cum
  local made = append_slots(t, branch, slots, args, first, now)
  save_branch(t, branch)
  if closes then
    enter(source, MERGED, now)
    save_branch(t, source)
  end
  local ids = {}
  for _, list in ipairs({found.ids, made}) do
    for _, id in ipairs(list) do ids[#ids + 1] = id end
  end
  return commit(t, args, now, EVENT.MERGED, branch.name, ids, {ids = ids, steps = count, branch = branch, conflicts = args[13], common = tonumber(args[14])})
end)
