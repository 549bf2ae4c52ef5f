<?php
/**
 * Keeps WordPress' object cache in Redis, over one connection per PHP worker that outlives requests.
 *
 * WordPress loads this file instead of its own cache when it stands in wp-content/ ("drop-in"). When Redis does not
 * answer, the cache lasts for the request only and the site goes on.
 */

if (!defined('ABSPATH')) {
    exit;
}

class WP_Object_Cache
{
    /** What was read or written in this request: group => key => value. */
    private array $local = [];
    /** Groups shared by all sites of a network. */
    private array $global_groups = [];
    /** Groups that are never written to Redis. */
    private array $local_groups = ['counts' => true, 'plugins' => true, 'themes' => true];
    private ?Redis $redis = null;
    private int $blog;
    public int $cache_hits = 0;
    public int $cache_misses = 0;

    public function __construct()
    {
        $this->blog = function_exists('get_current_blog_id') ? get_current_blog_id() : 1;
        try {
            $redis = new Redis();
            if ($redis->pconnect(getenv('WORDPRESS_REDIS_HOST') ?: 'redis', 6379, 1.0, 'object-cache')) {
                $redis->setOption(Redis::OPT_SERIALIZER, Redis::SERIALIZER_PHP);
                $redis->setOption(Redis::OPT_READ_TIMEOUT, 2.0);
                $this->redis = $redis;
            }
        } catch (RedisException $error) {
            $this->lost($error);
        }
    }

    /** Goes on without Redis for the rest of the request. */
    private function lost(RedisException $error): void
    {
        error_log('object cache: ' . $error->getMessage());
        $this->redis = null;
    }

    private function name(string|int $key, string $group): string
    {
        $blog = isset($this->global_groups[$group]) ? 0 : $this->blog;
        return "wp:$blog:$group:$key";
    }

    private function group($group): string
    {
        return $group === '' || $group === null ? 'default' : (string) $group;
    }

    private function shared(string $group): bool
    {
        return $this->redis !== null && !isset($this->local_groups[$group]);
    }

    /** Objects are copied, so that who gets one cannot change the cache. */
    private function copy($value)
    {
        return is_object($value) ? clone $value : $value;
    }

    public function get($key, $group = 'default', $force = false, &$found = null)
    {
        $group = $this->group($group);
        if (!$force && isset($this->local[$group]) && array_key_exists($key, $this->local[$group])) {
            $found = true;
            $this->cache_hits++;
            return $this->copy($this->local[$group][$key]);
        }
        if ($this->shared($group)) {
            try {
                // Every value is wrapped, so that a stored false differs from none.
                $box = $this->redis->get($this->name($key, $group));
                if (is_array($box)) {
                    $found = true;
                    $this->cache_hits++;
                    $this->local[$group][$key] = $box[0];
                    return $this->copy($box[0]);
                }
            } catch (RedisException $error) {
                $this->lost($error);
            }
        }
        $found = false;
        $this->cache_misses++;
        return false;
    }

    public function get_multiple($keys, $group = 'default', $force = false): array
    {
        $group = $this->group($group);
        $missing = array_filter($keys, fn($key) => $force || !array_key_exists($key, $this->local[$group] ?? []));
        if ($missing && $this->shared($group)) {
            try {
                $missing = array_values($missing);
                $boxes = $this->redis->mGet(array_map(fn($key) => $this->name($key, $group), $missing));
                foreach ($missing as $index => $key) {
                    if (is_array($boxes[$index] ?? null)) {
                        $this->local[$group][$key] = $boxes[$index][0];
                    }
                }
            } catch (RedisException $error) {
                $this->lost($error);
            }
        }
        $values = [];
        foreach ($keys as $key) {
            $hit = array_key_exists($key, $this->local[$group] ?? []);
            $hit ? $this->cache_hits++ : $this->cache_misses++;
            $values[$key] = $hit ? $this->copy($this->local[$group][$key]) : false;
        }
        return $values;
    }

    /** Writes a value; $only is 'nx' (when absent), 'xx' (when present) or nothing. */
    private function put($key, $value, $group, $expire, string $only = ''): bool
    {
        $group = $this->group($group);
        $value = $this->copy($value);
        $stored = true;
        if ($this->shared($group)) {
            try {
                $options = $only === '' ? [] : [$only];
                if ((int) $expire > 0) {
                    $options['ex'] = (int) $expire;
                }
                $stored = (bool) $this->redis->set($this->name($key, $group), [$value], $options ?: null);
            } catch (RedisException $error) {
                $this->lost($error);
            }
        } elseif ($only !== '') {
            $present = array_key_exists($key, $this->local[$group] ?? []);
            $stored = ($only === 'xx') === $present;
        }
        if ($stored) {
            $this->local[$group][$key] = $value;
        }
        return $stored;
    }

    public function set($key, $value, $group = 'default', $expire = 0): bool
    {
        return $this->put($key, $value, $group, $expire);
    }

    public function add($key, $value, $group = 'default', $expire = 0): bool
    {
        if (function_exists('wp_suspend_cache_addition') && wp_suspend_cache_addition()) {
            return false;
        }
        return $this->put($key, $value, $group, $expire, 'nx');
    }

    public function replace($key, $value, $group = 'default', $expire = 0): bool
    {
        return $this->put($key, $value, $group, $expire, 'xx');
    }

    public function delete($key, $group = 'default'): bool
    {
        $group = $this->group($group);
        $deleted = array_key_exists($key, $this->local[$group] ?? []);
        unset($this->local[$group][$key]);
        if ($this->shared($group)) {
            try {
                $deleted = $this->redis->del($this->name($key, $group)) > 0 || $deleted;
            } catch (RedisException $error) {
                $this->lost($error);
            }
        }
        return $deleted;
    }

    public function incr($key, $offset = 1, $group = 'default')
    {
        $value = $this->get($key, $group, true, $found);
        if (!$found) {
            return false;
        }
        $value = max(0, (is_numeric($value) ? (int) $value : 0) + (int) $offset);
        $this->put($key, $value, $group, 0);
        return $value;
    }

    /** Deletes the names that match, in steps that do not hold up others. */
    private function forget(string $pattern): bool
    {
        if ($this->redis === null) {
            return true;
        }
        try {
            $cursor = null;
            do {
                $names = $this->redis->scan($cursor, $pattern, 500);
                if ($names) {
                    $this->redis->unlink($names);
                }
            } while ($cursor > 0);
            return true;
        } catch (RedisException $error) {
            $this->lost($error);
            return false;
        }
    }

    public function flush(): bool
    {
        $this->local = [];
        return $this->forget('wp:*');
    }

    public function flush_group($group): bool
    {
        $group = $this->group($group);
        unset($this->local[$group]);
        $blog = isset($this->global_groups[$group]) ? 0 : $this->blog;
        return $this->forget("wp:$blog:" . addcslashes($group, '*?[]\\') . ':*');
    }

    public function flush_runtime(): bool
    {
        $this->local = [];
        return true;
    }

    public function add_global_groups($groups): void
    {
        $this->global_groups += array_fill_keys((array) $groups, true);
    }

    public function add_non_persistent_groups($groups): void
    {
        $this->local_groups += array_fill_keys((array) $groups, true);
    }

    public function switch_to_blog($blog): void
    {
        $this->blog = (int) $blog;
        $this->local = [];
    }

    public function stats(): void
    {
        echo '<p>Object cache in Redis: ', (int) $this->cache_hits, ' hits, ', (int) $this->cache_misses, ' misses</p>';
    }
}

function wp_cache_init()
{
    $GLOBALS['wp_object_cache'] = new WP_Object_Cache();
}

function wp_cache_supports($feature)
{
    return in_array($feature, ['add_multiple', 'set_multiple', 'get_multiple', 'delete_multiple', 'flush_runtime', 'flush_group'], true);
}

function wp_cache_get($key, $group = '', $force = false, &$found = null)
{
    return $GLOBALS['wp_object_cache']->get($key, $group, $force, $found);
}

function wp_cache_get_multiple($keys, $group = '', $force = false)
{
    return $GLOBALS['wp_object_cache']->get_multiple($keys, $group, $force);
}

function wp_cache_set($key, $data, $group = '', $expire = 0)
{
    return $GLOBALS['wp_object_cache']->set($key, $data, $group, $expire);
}

function wp_cache_add($key, $data, $group = '', $expire = 0)
{
    return $GLOBALS['wp_object_cache']->add($key, $data, $group, $expire);
}

function wp_cache_replace($key, $data, $group = '', $expire = 0)
{
    return $GLOBALS['wp_object_cache']->replace($key, $data, $group, $expire);
}

function wp_cache_delete($key, $group = '')
{
    return $GLOBALS['wp_object_cache']->delete($key, $group);
}

function wp_cache_set_multiple(array $data, $group = '', $expire = 0)
{
    return array_map(fn($key) => wp_cache_set($key, $data[$key], $group, $expire), array_combine(array_keys($data), array_keys($data)));
}

function wp_cache_add_multiple(array $data, $group = '', $expire = 0)
{
    return array_map(fn($key) => wp_cache_add($key, $data[$key], $group, $expire), array_combine(array_keys($data), array_keys($data)));
}

function wp_cache_delete_multiple(array $keys, $group = '')
{
    return array_map(fn($key) => wp_cache_delete($key, $group), array_combine($keys, $keys));
}

function wp_cache_incr($key, $offset = 1, $group = '')
{
    return $GLOBALS['wp_object_cache']->incr($key, $offset, $group);
}

function wp_cache_decr($key, $offset = 1, $group = '')
{
    return $GLOBALS['wp_object_cache']->incr($key, -(int) $offset, $group);
}

function wp_cache_flush()
{
    return $GLOBALS['wp_object_cache']->flush();
}

function wp_cache_flush_runtime()
{
    return $GLOBALS['wp_object_cache']->flush_runtime();
}

function wp_cache_flush_group($group)
{
    return $GLOBALS['wp_object_cache']->flush_group($group);
}

function wp_cache_close()
{
    return true;
}

function wp_cache_add_global_groups($groups)
{
    $GLOBALS['wp_object_cache']->add_global_groups($groups);
}

function wp_cache_add_non_persistent_groups($groups)
{
    $GLOBALS['wp_object_cache']->add_non_persistent_groups($groups);
}

function wp_cache_switch_to_blog($blog_id)
{
    $GLOBALS['wp_object_cache']->switch_to_blog($blog_id);
}

function wp_cache_reset()
{
    $GLOBALS['wp_object_cache']->flush_runtime();
}
