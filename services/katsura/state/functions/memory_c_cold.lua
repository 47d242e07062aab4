-- Memory trees, part 12: cold trees. Their nodes are in an object; the store keeps `cold`, which names it.
--
--   live --freeze--> cold --thaw_begin, restore_...--> cold, and half restored --thaw_end--> live
--
-- Each arrow is one call, and `cold` goes in the very call that shows the tree again: at no time is it in neither place.
-- What a thaw that died has restored expires, or is swept away by the next one.

-- ARGV: revision that the object holds, object, digest. {'OK', nodes, bytes}, or {'MOVED'} or {'BUSY'}.
register('freeze', function(keys, args)
  local t, missing = open(keys)
  if not t then return missing end
  if t.revision ~= tonumber(args[1]) then return {'MOVED'} end
  if t.ttl_ms ~= 0 or redis.call('HLEN', t.work) > 0 or is_leased(t) then return {'BUSY'} end
  local meta = redis.call('HGETALL', t.meta)
  local bytes = tonumber(redis.call('HGET', t.meta, 'bytes') or 0)
  redis.call('SET', t.cold, cjson.encode({object = args[2], digest = args[3], meta = meta}))
  for _, digest in ipairs(redis.call('SMEMBERS', t.tokenizers)) do
    redis.call('UNLINK', t.prefix .. 'tokens:' .. digest)
  end
  for _, suffix in ipairs(SUFFIXES) do redis.call('UNLINK', t[suffix]) end
  return {'OK', t.next, bytes}
end)

-- ARGV: token, silence in ms after which another thaw is taken to be dead. {'OK', record}, or {'THAWING'}.
register('thaw_begin', function(keys, args)
  local t = keys_of(keys[1])
  local record = redis.call('GET', t.cold)
  if not record then return {'TREE_NOT_FOUND'} end
  local left = redis.call('PTTL', t.meta)
  if left >= 0 and IMPORT_KEPT_MS - left < tonumber(args[2]) then return {'THAWING'} end
  for _, suffix in ipairs(SUFFIXES) do redis.call('UNLINK', t[suffix]) end
  redis.call('HSET', t.meta, 'importing', args[1])
  keep_for_now(t)
  return {'OK', record}
end)

-- ARGV: as restore_end.
register('thaw_end', function(keys, args)
  local t = keys_of(keys[1])
  if not importing(t, args[1]) then return {'TREE_EXISTS'} end
  local record = cjson.decode(redis.call('GET', t.cold))
  local kept = {}
  for i = 1, #record.meta, 2 do kept[record.meta[i]] = record.meta[i + 1] end
  local done = restored(keys, args, EVENT.UPDATED, kept)
  redis.call('DEL', t.cold)
  return done
end)

-- {'OK', record} of a cold tree.
register('cold', function(keys)
  local record = redis.call('GET', keys_of(keys[1]).cold)
  return record and {'OK', record} or {'TREE_NOT_FOUND'}
end, {'no-writes'})
