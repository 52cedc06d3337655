/* NVTX injection library: every NVTX call of a process becomes one JSON line (measures.md, section 13).
 *
 * NVTX loads it through NVTX_INJECTION64_PATH; it appends to the file named by CTRBENCH_NVTX_OUT. Without that file it
 * declines, and NVTX stays off. One write(2) with O_APPEND a line: lines of threads and of child processes never mix,
 * and a killed process loses none. It never fails its host: what cannot be kept is counted in the last line.
 *
 * Lines: {"kind":"process",...} once a process, then the events, then {"kind":"exit","events":N,"lost":N}.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <nvtx3/nvToolsExt.h>

enum { MAX_CHARS = 512, MAX_TEXT = 6 * MAX_CHARS + 64, LINE = 2 * MAX_TEXT + 1024 };

/* Domains and registered strings: text already escaped, kept for the life of the process so that no handle dangles. */
typedef struct { char text[1]; } Name;

static int out = -1;
static atomic_ullong next_id = 1, events = 0, lost = 0;
static atomic_int announced = 0, torn = 0;
static uint32_t nvtx_version = 0;
static __thread int tid = 0;
static int pid = 0;

static unsigned long long now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (unsigned long long)t.tv_sec * 1000000000ull + (unsigned long long)t.tv_nsec;
}

/* ---------------------------------------------------------------- text */

/* Next code point of UTF-8; U+FFFD for a byte that is none. */
static uint32_t next_utf8(const unsigned char **s) {
    uint32_t c = *(*s)++;
    int more = c < 0x80 ? 0 : c >= 0xF0 && c < 0xF8 ? 3 : c >= 0xE0 ? 2 : c >= 0xC2 ? 1 : -1;
    if (c >= 0xF8 || more < 0) return 0xFFFD;
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    if (more) c &= 0x3Fu >> more;
    const unsigned char *p = *s;
    for (int i = 0; i < more; i++, p++) {
        if ((*p & 0xC0) != 0x80) return 0xFFFD;
        c = c << 6 | (*p & 0x3F);
    }
    if (c < least[more] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return 0xFFFD;
    *s = p;
    return c;
}

static uint32_t next_wide(const wchar_t **s) {
    uint32_t c = (uint32_t) * (*s)++;
    return c > 0x10FFFF || (c >= 0xD800 && c < 0xE000) ? 0xFFFD : c;
}

static char *put(char *to, uint32_t c) {
    if (c == '"' || c == '\\') {
        *to++ = '\\';
        *to++ = (char)c;
    } else if (c < 0x20) {
        to += sprintf(to, "\\u%04x", c);
    } else if (c < 0x80) {
        *to++ = (char)c;
    } else {
        int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
        static const uint32_t lead[] = {0, 0xC0, 0xE0, 0xF0};
        *to++ = (char)(lead[more] | c >> 6 * more);
        while (more--) *to++ = (char)(0x80 | (c >> 6 * more & 0x3F));
    }
    return to;
}

/* Escapes ASCII/UTF-8 (`narrow`) or wide text into `to`; what is cut off is counted at its end. */
static void escape(char *to, const char *narrow, const wchar_t *wide) {
    const unsigned char *n = (const unsigned char *)narrow;
    size_t taken = 0, cut = 0;
    while (n ? *n : *wide) {
        uint32_t c = n ? next_utf8(&n) : next_wide(&wide);
        if (taken < MAX_CHARS) {
            to = put(to, c);
            taken++;
        } else {
            cut++;
        }
    }
    if (cut) to += sprintf(to, "...[%zu more characters]", cut);
    *to = 0;
}

static void *keep(const char *narrow, const wchar_t *wide) {
    char text[MAX_TEXT];
    if (!narrow && !wide) narrow = "";
    escape(text, narrow, wide);
    Name *name = malloc(strlen(text) + 1);
    if (name) strcpy(name->text, text);
    return name;
}

/* --------------------------------------------------------------- lines */

static void write_line(const char *line, size_t length) {
    int before = errno;
    if (atomic_exchange(&torn, 0) && write(out, "\n", 1) != 1) atomic_store(&torn, 1);
    ssize_t done = write(out, line, length);
    if (done != (ssize_t)length) {
        atomic_fetch_add(&lost, 1);
        if (done > 0) atomic_store(&torn, 1);
    }
    errno = before;
}

static void announce(void) {
    char line[512], name[MAX_TEXT], shortened[32];
    snprintf(shortened, sizeof shortened, "%s", program_invocation_short_name);
    escape(name, shortened, NULL);
    int n = snprintf(line, sizeof line,
        "{\"kind\":\"process\",\"t\":%llu,\"utc\":%llu,\"pid\":%d,\"name\":\"%s\",\"nvtx\":%u}\n",
        now_ns(CLOCK_MONOTONIC), now_ns(CLOCK_REALTIME), pid, name, nvtx_version);
    write_line(line, (size_t)n);
}

/* The start of a line: everything that all events have. */
static int head(char *line, unsigned long long t, const char *kind, nvtxDomainHandle_t domain) {
    if (!pid) pid = getpid();
    if (!tid) tid = (int)syscall(SYS_gettid);
    if (!atomic_exchange(&announced, 1)) announce();
    return sprintf(line, "{\"t\":%llu,\"pid\":%d,\"tid\":%d,\"kind\":\"%s\",\"domain\":\"%s\"", t, pid, tid, kind,
        domain ? ((Name *)domain)->text : "");
}

static void finish(char *line, int n) {
    line[n++] = '}';
    line[n++] = '\n';
    atomic_fetch_add(&events, 1);
    write_line(line, (size_t)n);
}

static int put_text(char *line, const char *narrow, const wchar_t *wide) {
    if (!narrow && !wide) return sprintf(line, ",\"text\":null,\"form\":null");
    char text[MAX_TEXT];
    escape(text, narrow, wide);
    return sprintf(line, ",\"text\":\"%s\",\"form\":\"%s\"", text, narrow ? "ascii" : "wide");
}

static int put_real(char *line, double value) {
    if (isnan(value) || isinf(value)) return sprintf(line, "\"%f\"", value);
    return sprintf(line, "%.17g", value);
}

static int put_payload(char *line, const nvtxEventAttributes_t *e) {
    int n = sprintf(line, ",\"payload\":");
    switch (e->payloadType) {
    case NVTX_PAYLOAD_UNKNOWN: return n + sprintf(line + n, "null");
    case NVTX_PAYLOAD_TYPE_UNSIGNED_INT64:
        return n + sprintf(line + n, "{\"type\":\"u64\",\"value\":%llu}", (unsigned long long)e->payload.ullValue);
    case NVTX_PAYLOAD_TYPE_INT64:
        return n + sprintf(line + n, "{\"type\":\"i64\",\"value\":%lld}", (long long)e->payload.llValue);
    case NVTX_PAYLOAD_TYPE_UNSIGNED_INT32:
        return n + sprintf(line + n, "{\"type\":\"u32\",\"value\":%u}", (unsigned)e->payload.uiValue);
    case NVTX_PAYLOAD_TYPE_INT32: return n + sprintf(line + n, "{\"type\":\"i32\",\"value\":%d}", (int)e->payload.iValue);
    case NVTX_PAYLOAD_TYPE_DOUBLE:
    case NVTX_PAYLOAD_TYPE_FLOAT: {
        int wide = e->payloadType == NVTX_PAYLOAD_TYPE_DOUBLE;
        n += sprintf(line + n, "{\"type\":\"%s\",\"value\":", wide ? "f64" : "f32");
        n += put_real(line + n, wide ? e->payload.dValue : (double)e->payload.fValue);
        return n + sprintf(line + n, "}");
    }
    default: return n + sprintf(line + n, "{\"type\":\"ext:%d\",\"value\":null}", e->payloadType);
    }
}

static int put_attributes(char *line, const nvtxEventAttributes_t *e) {
    if (!e) return put_text(line, NULL, NULL);
    int n = sprintf(line, ",\"version\":%u,\"size\":%u", e->version, e->size);
    if (e->size < sizeof *e) return n + put_text(line + n, NULL, NULL); /* of a layout that is not known here */
    n += sprintf(line + n, ",\"category\":%u", e->category);
    n += e->colorType == NVTX_COLOR_ARGB ? sprintf(line + n, ",\"color\":%u", e->color)
                                         : sprintf(line + n, ",\"color\":null");
    n += put_payload(line + n, e);
    if (e->messageType == NVTX_MESSAGE_TYPE_REGISTERED && e->message.registered)
        return n + sprintf(line + n, ",\"text\":\"%s\",\"form\":\"registered\"", ((Name *)e->message.registered)->text);
    if (e->messageType == NVTX_MESSAGE_TYPE_UNICODE) return n + put_text(line + n, NULL, e->message.unicode);
    return n + put_text(line + n, e->messageType == NVTX_MESSAGE_TYPE_ASCII ? e->message.ascii : NULL, NULL);
}

/* -------------------------------------------------------------- events */

static void attributed(const char *kind, nvtxDomainHandle_t domain, const nvtxEventAttributes_t *e, uint64_t id) {
    char line[LINE];
    int n = head(line, now_ns(CLOCK_MONOTONIC), kind, domain);
    if (id) n += sprintf(line + n, ",\"id\":%llu", (unsigned long long)id);
    n += put_attributes(line + n, e);
    finish(line, n);
}

static void plain(const char *kind, nvtxDomainHandle_t domain, const char *a, const wchar_t *w, uint64_t id) {
    char line[LINE];
    int n = head(line, now_ns(CLOCK_MONOTONIC), kind, domain);
    if (id) n += sprintf(line + n, ",\"id\":%llu", (unsigned long long)id);
    n += put_text(line + n, a, w);
    finish(line, n);
}

static void bare(const char *kind, nvtxDomainHandle_t domain, uint64_t id) {
    char line[LINE];
    int n = head(line, now_ns(CLOCK_MONOTONIC), kind, domain);
    if (id) n += sprintf(line + n, ",\"id\":%llu", (unsigned long long)id);
    finish(line, n);
}

static void numbered(const char *kind, nvtxDomainHandle_t domain, const char *key, uint32_t number, const char *a,
                     const wchar_t *w) {
    char line[LINE];
    int n = head(line, now_ns(CLOCK_MONOTONIC), kind, domain);
    n += sprintf(line + n, ",\"%s\":%u", key, number);
    n += put_text(line + n, a, w);
    finish(line, n);
}

static nvtxRangeId_t new_id(void) { return atomic_fetch_add(&next_id, 1); }

static void NVTX_API mark_ex(const nvtxEventAttributes_t *e) { attributed("mark", NULL, e, 0); }
static void NVTX_API mark_a(const char *m) { plain("mark", NULL, m, NULL, 0); }
static void NVTX_API mark_w(const wchar_t *m) { plain("mark", NULL, NULL, m, 0); }
static nvtxRangeId_t NVTX_API start_ex(const nvtxEventAttributes_t *e) {
    nvtxRangeId_t id = new_id();
    attributed("start", NULL, e, id);
    return id;
}
static nvtxRangeId_t NVTX_API start_a(const char *m) {
    nvtxRangeId_t id = new_id();
    plain("start", NULL, m, NULL, id);
    return id;
}
static nvtxRangeId_t NVTX_API start_w(const wchar_t *m) {
    nvtxRangeId_t id = new_id();
    plain("start", NULL, NULL, m, id);
    return id;
}
static void NVTX_API end(nvtxRangeId_t id) { bare("end", NULL, id); }
static int NVTX_API push_ex(const nvtxEventAttributes_t *e) {
    attributed("push", NULL, e, 0);
    return NVTX_NO_PUSH_POP_TRACKING;
}
static int NVTX_API push_a(const char *m) {
    plain("push", NULL, m, NULL, 0);
    return NVTX_NO_PUSH_POP_TRACKING;
}
static int NVTX_API push_w(const wchar_t *m) {
    plain("push", NULL, NULL, m, 0);
    return NVTX_NO_PUSH_POP_TRACKING;
}
static int NVTX_API pop(void) {
    bare("pop", NULL, 0);
    return NVTX_NO_PUSH_POP_TRACKING;
}
static void NVTX_API category_a(uint32_t c, const char *m) { numbered("name_category", NULL, "category", c, m, NULL); }
static void NVTX_API category_w(uint32_t c, const wchar_t *m) { numbered("name_category", NULL, "category", c, NULL, m); }
static void NVTX_API thread_a(uint32_t t, const char *m) { numbered("name_thread", NULL, "thread", t, m, NULL); }
static void NVTX_API thread_w(uint32_t t, const wchar_t *m) { numbered("name_thread", NULL, "thread", t, NULL, m); }

static void NVTX_API domain_mark(nvtxDomainHandle_t d, const nvtxEventAttributes_t *e) { attributed("mark", d, e, 0); }
static nvtxRangeId_t NVTX_API domain_start(nvtxDomainHandle_t d, const nvtxEventAttributes_t *e) {
    nvtxRangeId_t id = new_id();
    attributed("start", d, e, id);
    return id;
}
static void NVTX_API domain_end(nvtxDomainHandle_t d, nvtxRangeId_t id) { bare("end", d, id); }
static int NVTX_API domain_push(nvtxDomainHandle_t d, const nvtxEventAttributes_t *e) {
    attributed("push", d, e, 0);
    return NVTX_NO_PUSH_POP_TRACKING;
}
static int NVTX_API domain_pop(nvtxDomainHandle_t d) {
    bare("pop", d, 0);
    return NVTX_NO_PUSH_POP_TRACKING;
}
static void NVTX_API domain_category_a(nvtxDomainHandle_t d, uint32_t c, const char *m) {
    numbered("name_category", d, "category", c, m, NULL);
}
static void NVTX_API domain_category_w(nvtxDomainHandle_t d, uint32_t c, const wchar_t *m) {
    numbered("name_category", d, "category", c, NULL, m);
}
static nvtxStringHandle_t NVTX_API register_a(nvtxDomainHandle_t d, const char *m) {
    plain("register_string", d, m, NULL, 0);
    return (nvtxStringHandle_t)keep(m, NULL);
}
static nvtxStringHandle_t NVTX_API register_w(nvtxDomainHandle_t d, const wchar_t *m) {
    plain("register_string", d, NULL, m, 0);
    return (nvtxStringHandle_t)keep(NULL, m);
}
static nvtxDomainHandle_t NVTX_API create_a(const char *m) {
    nvtxDomainHandle_t d = (nvtxDomainHandle_t)keep(m, NULL);
    bare("domain_create", d, 0);
    return d;
}
static nvtxDomainHandle_t NVTX_API create_w(const wchar_t *m) {
    nvtxDomainHandle_t d = (nvtxDomainHandle_t)keep(NULL, m);
    bare("domain_create", d, 0);
    return d;
}
static void NVTX_API destroy(nvtxDomainHandle_t d) { bare("domain_destroy", d, 0); }

/* ---------------------------------------------------------- attachment */

typedef struct { unsigned slot; NvtxFunctionPointer function; } Slot;
#define SLOT(name, function) {name, (NvtxFunctionPointer)function}

static const Slot core[] = {
    SLOT(NVTX_CBID_CORE_MarkEx, mark_ex), SLOT(NVTX_CBID_CORE_MarkA, mark_a), SLOT(NVTX_CBID_CORE_MarkW, mark_w),
    SLOT(NVTX_CBID_CORE_RangeStartEx, start_ex), SLOT(NVTX_CBID_CORE_RangeStartA, start_a),
    SLOT(NVTX_CBID_CORE_RangeStartW, start_w), SLOT(NVTX_CBID_CORE_RangeEnd, end),
    SLOT(NVTX_CBID_CORE_RangePushEx, push_ex), SLOT(NVTX_CBID_CORE_RangePushA, push_a),
    SLOT(NVTX_CBID_CORE_RangePushW, push_w), SLOT(NVTX_CBID_CORE_RangePop, pop),
    SLOT(NVTX_CBID_CORE_NameCategoryA, category_a), SLOT(NVTX_CBID_CORE_NameCategoryW, category_w),
    SLOT(NVTX_CBID_CORE_NameOsThreadA, thread_a), SLOT(NVTX_CBID_CORE_NameOsThreadW, thread_w),
};
static const Slot core2[] = {
    SLOT(NVTX_CBID_CORE2_DomainMarkEx, domain_mark), SLOT(NVTX_CBID_CORE2_DomainRangeStartEx, domain_start),
    SLOT(NVTX_CBID_CORE2_DomainRangeEnd, domain_end), SLOT(NVTX_CBID_CORE2_DomainRangePushEx, domain_push),
    SLOT(NVTX_CBID_CORE2_DomainRangePop, domain_pop), SLOT(NVTX_CBID_CORE2_DomainNameCategoryA, domain_category_a),
    SLOT(NVTX_CBID_CORE2_DomainNameCategoryW, domain_category_w),
    SLOT(NVTX_CBID_CORE2_DomainRegisterStringA, register_a), SLOT(NVTX_CBID_CORE2_DomainRegisterStringW, register_w),
    SLOT(NVTX_CBID_CORE2_DomainCreateA, create_a), SLOT(NVTX_CBID_CORE2_DomainCreateW, create_w),
    SLOT(NVTX_CBID_CORE2_DomainDestroy, destroy),
};

static void fill(const NvtxExportTableCallbacks *callbacks, NvtxCallbackModule module, const Slot *slots, size_t count) {
    NvtxFunctionTable table = NULL;
    unsigned size = 0;
    if (!callbacks->GetModuleFunctionTable(module, &table, &size)) return;
    for (size_t i = 0; i < count; i++)
        if (slots[i].slot < size && table[slots[i].slot]) *table[slots[i].slot] = slots[i].function;
}

/* The child of a fork has one thread, this one, and announces itself with its first event. */
static void forked(void) {
    pid = tid = 0;
    atomic_store(&announced, 0);
    atomic_store(&events, 0);
    atomic_store(&lost, 0);
}

__attribute__((destructor)) static void at_exit(void) {
    char line[160];
    if (out < 0 || !atomic_load(&announced)) return;
    int n = snprintf(line, sizeof line, "{\"kind\":\"exit\",\"t\":%llu,\"pid\":%d,\"events\":%llu,\"lost\":%llu}\n",
        now_ns(CLOCK_MONOTONIC), pid, (unsigned long long)events, (unsigned long long)lost);
    write_line(line, (size_t)n);
}

__attribute__((visibility("default"))) int NVTX_API InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
    const char *path = getenv("CTRBENCH_NVTX_OUT");
    const NvtxExportTableCallbacks *callbacks = get_table(NVTX_ETID_CALLBACKS);
    const NvtxExportTableVersionInfo *version = get_table(NVTX_ETID_VERSIONINFO);
    if (!path || !callbacks || callbacks->struct_size < sizeof *callbacks) return 0;
    /* Every binary that compiled NVTX in attaches for itself: one file for all of them. */
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    if (out < 0) {
        out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (version && version->struct_size >= sizeof version->version + sizeof(size_t)) nvtx_version = version->version;
        pthread_atfork(NULL, NULL, forked);
    }
    pthread_mutex_unlock(&lock);
    if (out < 0) return 0;
    fill(callbacks, NVTX_CB_MODULE_CORE, core, sizeof core / sizeof *core);
    fill(callbacks, NVTX_CB_MODULE_CORE2, core2, sizeof core2 / sizeof *core2);
    return 1;
}
