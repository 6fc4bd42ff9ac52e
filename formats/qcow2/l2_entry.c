/* SPDX-License-Identifier: BSD-3-Clause */
/* Texts for the FAULT_* bits. */
#include <stddef.h>

#include "qcow2/l2_entry.h"

static const struct {
    unsigned fault;
    const char *text;
} faults_by_weight[] = {
    {FAULT_MISALIGNED, "not cluster aligned"},
    {FAULT_PAST_END, "past the end of the file"},
    {FAULT_RESERVED, "reserved bits are set"},
    {FAULT_ZERO_V2, "zero flag in a version 2 image"},
    {FAULT_SUBCLUSTERS, "subclusters that can't be as they are said to be"},
    {FAULT_PLACE, "not at its guest offset in the data file"},
    {FAULT_COMPRESSED_EXTERNAL, "a compressed cluster in an external data file"},
    {FAULT_COPIED, "copied flag of a compressed cluster"},
};

const char *entry_fault_text(unsigned faults)
{
    for (size_t i = 0; i < sizeof faults_by_weight / sizeof faults_by_weight[0]; i++)
        if (faults & faults_by_weight[i].fault)
            return faults_by_weight[i].text;
    return "sound";
}
