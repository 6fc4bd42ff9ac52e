#include <errno.h>
#include <string.h>

#include "export.h"

static int open_chain(struct export *export, const struct plugin_config *config,
                      struct diag *diag)
{
    struct chain_options options = {
        .format = config->format,
        .fallback_read_only = true,
        .no_backing = config->no_backing,
        .backing = config->backing,
        .backing_format = config->backing_format,
        .references = config->references,
        .node = config->node,
    };

    options.node.cache = config->cache;
    return chain_open(&export->ctx, config->file, &options, &export->node, diag);
}

int export_open(struct export *export, const struct plugin_config *config, struct diag *diag)
{
    *export = (struct export){0};
    lock_init(&export->writable_lock, RANK_OPEN);
    int err = block_context_init(&export->ctx, config->metadata_cache, NULL, NULL);
    if (err)
        return diag_errno(diag, -err, "%s", config->file);
    err = open_chain(export, config, diag);
    if (!err && config->writable_now)
        err = export_make_writable(export, diag);
    if (err) {
        node_close(export->node);
        export->node = NULL;
        block_context_destroy(&export->ctx);
    }
    return err;
}

int export_start(struct export *export)
{
    return housekeeper_start(export->ctx.housekeeper);
}

int export_make_writable(struct export *export, struct diag *diag)
{
    LOCK_GUARD(&export->writable_lock);
    return node_activate(export->node, diag);
}

int export_close(struct export *export)
{
    if (!export->node)
        return 0;
    housekeeper_stop(export->ctx.housekeeper);
    int err = node_close(export->node);
    export->node = NULL;
    block_context_destroy(&export->ctx);
    lock_destroy(&export->writable_lock);
    return err;
}
