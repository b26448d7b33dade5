/* A call into another library goes through a slot that the dynamic linker fills with the function's
 * address (at once, or when it is first called), as a relocation tells it. The slot is found by
 * way of these relocations, so it does not matter which was loaded first; see elf(5).
 */
#define _GNU_SOURCE
#include "_redirect.h"

#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct search {
    const struct link_map *map; /* of the library */
    const char *symbol;
    void **slot;
    char *page; /* that the slot lies in */
    bool relro; /* the linker has taken the right to write to that page */
};

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Look for the symbol's relocation in one table. */
static void look(struct search *search, const ElfW(Rela) *table, size_t size,
                 const ElfW(Sym) *symbols, const char *names)
{
    for (size_t i = 0; table && i < size / sizeof *table && !search->slot; i++) {
        size_t symbol = table[i].r_info >> (sizeof(void *) == 8 ? 32 : 8);
        if (symbol && strcmp(names + symbols[symbol].st_name, search->symbol) == 0)
            search->slot = (void **)(search->map->l_addr + table[i].r_offset);
    }
}

static void find_slot(struct search *search)
{
    ElfW(Addr) base = search->map->l_addr, symbols = 0, names = 0, jumps = 0, others = 0;
    size_t jumps_size = 0, others_size = 0;
    for (const ElfW(Dyn) *entry = search->map->l_ld; entry->d_tag != DT_NULL; entry++) {
        ElfW(Addr) value = entry->d_un.d_ptr;
        /* glibc has turned offsets into addresses here, musl has not. */
        ElfW(Addr) address = value < base ? base + value : value;
        switch (entry->d_tag) {
        case DT_SYMTAB: symbols = address; break;
        case DT_STRTAB: names = address; break;
        case DT_JMPREL: jumps = address; break;
        case DT_RELA: others = address; break;
        case DT_PLTRELSZ: jumps_size = value; break;
        case DT_RELASZ: others_size = value; break;
        case DT_PLTREL:
            if (value != DT_RELA) /* an architecture, as i386, with relocations of another form */
                return;
        }
    }
    look(search, (void *)jumps, jumps_size, (void *)symbols, (void *)names);
    look(search, (void *)others, others_size, (void *)symbols, (void *)names);
}

static int find_protection(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size;
    struct search *search = data;
    if (info->dlpi_addr != search->map->l_addr)
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        char *start = (char *)info->dlpi_addr + segment->p_vaddr, *end = search->page + page_size();
        if (segment->p_type == PT_GNU_RELRO && end > start && end <= start + segment->p_memsz)
            search->relro = true; /* a page that is only partly in the segment stays writable */
    }
    return 1;
}

const char *redirect(void *library, const char *symbol, void *target)
{
    struct search search = {.symbol = symbol};
    if (dlinfo(library, RTLD_DI_LINKMAP, &search.map) != 0)
        return dlerror();
    find_slot(&search);
    if (search.slot == NULL)
        return "it has no relocation of the function";
    search.page = (char *)((uintptr_t)search.slot & ~(page_size() - 1));
    dl_iterate_phdr(find_protection, &search);
    if (search.relro && mprotect(search.page, page_size(), PROT_READ | PROT_WRITE) != 0)
        return "its relocations cannot be made writable";
    *search.slot = target;
    if (search.relro)
        mprotect(search.page, page_size(), PROT_READ);
    return NULL;
}
