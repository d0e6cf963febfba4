/* Includes the header, twice, as any source of a plugin may. */
#include "../../include/keystead_plugin.h"
#include "../../include/keystead_plugin.h"
