-- Memory trees, part 11: what a tree takes and whom its steps are charged to, counted by the writes themselves.

-- {'OK', nodes, bytes, field and count by turns}; a field is `<agent>\n<what>`.
register('usage', function(keys)
  local t, missing = open(keys)
  if not t then return missing end
  return {'OK', t.next, math.max(0, tonumber(redis.call('HGET', t.meta, 'bytes') or 0)), redis.call('HGETALL', t.usage)}
end, {'no-writes'})
