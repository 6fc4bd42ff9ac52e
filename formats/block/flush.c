/* Flush, and the end that all changing requests share. */
#include "block/engine.h"

int engine_finish_write(struct node *node, int err, bool commit)
{
    /* Also after a failure: some of it may have been written. */
    node_wrote(node);
    if (err)
        return err;
    if (commit)
        return mcache_commit(node->mc, MC_COMMIT);
    mcache_relieve(node->mc);
    return 0;
}

int block_flush(struct node *node)
{
    return node->active ? mcache_commit(node->mc, MC_COMMIT) : 0;
}
